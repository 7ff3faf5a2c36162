"""What usually goes wrong in a run, from what it logged and how it was set: `equipoise doctor`."""

from equipoise.diagnostics.doctor.finding import Finding, not_checked, ok, warning, worst_first, wrong
from equipoise.diagnostics.doctor.report import as_json, print_findings
from equipoise.diagnostics.doctor.run_checks import RUN_CHECKS
from equipoise.diagnostics.doctor.run_evidence import RunEvidence
from equipoise.diagnostics.doctor.settings_checks import SETTINGS_CHECKS, SettingsEvidence

__all__ = [
    "RUN_CHECKS",
    "SETTINGS_CHECKS",
    "Finding",
    "RunEvidence",
    "SettingsEvidence",
    "as_json",
    "not_checked",
    "ok",
    "print_findings",
    "warning",
    "worst_first",
    "wrong",
]
