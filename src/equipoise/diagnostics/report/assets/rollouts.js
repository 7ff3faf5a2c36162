// The token view: a list of rollouts, one of them in full with its tokens coloured, and two updates side by side.

const COLORINGS = {
  polarity: { label: "Polarity A·T", kind: "diverging", of: (r, i) => at(r.P, i), low: "contracts", high: "expands" },
  entropy: { label: "Entropy", kind: "amount", of: (r, i) => at(r.H, i), low: "0", high: "" },
  ratio: { label: "Ratio π/μ", kind: "diverging", of: (r, i) => Math.log2(at(r.r, i)), low: "", high: "", shown: (v) => number(2 ** v, 2) },
  clipping: { label: "Clipping", kind: "state" },
  advantage: { label: "Advantage", kind: "diverging", of: (r, i) => at(r.A, i), low: "", high: "" },
  weight: { label: "Weight A′/A", kind: "diverging", of: (r, i) => Math.log2(Math.max(at(r.w, i), 1e-6)), low: "", high: "", shown: (v) => number(2 ** v, 2) },
  probability: { label: "Probability", kind: "amount", of: (r, i) => Math.exp(known(at(r.lp, i))), low: "0", high: "" },
};
const STATES = ["in the loss, not clipped", "clipped by the lower bound", "clipped by the upper bound", "carries no loss", "of an environment"];
const STATE_CLASSES = ["", "low", "high", "unused", "environment"];
const SORTS = { moved: "moved the entropy most", expanding: "expanding most", contracting: "contracting most", reward: "highest reward", length: "longest", update: "update" };
const at = (column, i) => (Array.isArray(column) ? column[i] : column);
const known = (value) => (value === null ? NaN : value); // in sums and powers null would be 0
const rolloutsOf = (run) => (run === null || !DATA.runs[run] || !DATA.runs[run].records ? [] : DATA.runs[run].records.rollouts);
const keyOf = (rollout) => rollout.update + "/" + rollout.sample;
const textOf = (rollout) => rollout.t.map((t) => DATA.vocabulary[t]).join(" ");
const scales = new Map();

/** Where the colours of a run end: the 95th percentile over its rollouts on the page, so that they compare. */
function scaleOf(run, coloring) {
  const key = run + coloring;
  if (!scales.has(key)) {
    const values = rolloutsOf(run).flatMap((r) => r.t.map((_, i) => Math.abs(COLORINGS[coloring].of(r, i))));
    scales.set(key, coloring === "probability" ? 1 : quantile(values, 0.95) || quantile(values, 1) || 1);
  }
  return scales.get(key);
}

const strength = (share) => 0.72 * Math.sqrt(Math.min(Math.abs(share), 1)); // the root lets small values be seen
function background(coloring, rollout, i, scale) {
  const { kind, of } = COLORINGS[coloring];
  if (kind === "state") return [null, "rgba(var(--contract), .45)", "rgba(var(--expand), .45)", null, null][at(rollout.c, i)];
  const value = of(rollout, i);
  if (!Number.isFinite(value)) return null;
  const hue = kind === "amount" ? "--amount" : value > 0 ? "--expand" : "--contract";
  return `rgba(var(${hue}), ${strength(value / scale).toFixed(3)})`;
}

function tokenNumbers(rollout, i) {
  const lp = known(at(rollout.lp, i)), old = rollout.old ? known(at(rollout.old, i)) : lp, mu = rollout.mu ? known(at(rollout.mu, i)) : old;
  const A = known(at(rollout.A, i)), w = known(at(rollout.w, i)), P = at(rollout.P, i), ratio = at(rollout.r, i), state = at(rollout.c, i), version = at(rollout.version, i);
  return [
    ["place · id", `${rollout.position + i} · ${rollout.id[i]}`],
    ["probability", `${number(Math.exp(lp))}  (log ${number(lp)})`],
    ["log-prob: behaviour · old", `${number(mu)} · ${number(old)}`],
    ["ratio", number(ratio, 4)],
    ["entropy H", `${number(at(rollout.H, i))} nats`],
    ["advantage → reweighted", w === 1 ? number(A) : `${number(A)} → ${number(A * w)}`],
    ["polarity A·T", signed(P)],
    ["predicted change m·ρ·A·T", state ? "0" : signed(ratio === null ? P : P * ratio)],
    ["state", STATES[state]],
    ["policy version · staleness", version === null ? "–" : `${version} · ${rollout.update - 1 - version}`],
    ["reward of the sample", number(rollout.reward)],
  ];
}

function showTip(node, rollout, i) {
  const tip = byId("tip");
  tip.replaceChildren(el("b", {}, JSON.stringify(DATA.vocabulary[rollout.t[i]])), el("dl", {}, tokenNumbers(rollout, i).flatMap(([k, v]) => [el("dt", {}, k), el("dd", {}, v)])));
  tip.hidden = false;
  const box = node.getBoundingClientRect(), size = tip.getBoundingClientRect();
  tip.classList.toggle("above", box.top > innerHeight / 2); // on a small screen
  const top = box.bottom + 8 + size.height < innerHeight ? box.bottom + 8 : Math.max(8, box.top - size.height - 8);
  tip.style.top = top + "px";
  tip.style.left = Math.max(8, Math.min(box.left, innerWidth - size.width - 12)) + "px";
}
const hideTip = () => (byId("tip").hidden = true);

/** A completion as tokens that can be pointed at, or walked through with the arrow keys. */
function completion(run, rollout, coloring) {
  const scale = COLORINGS[coloring].kind === "state" ? 1 : scaleOf(run, coloring);
  const numberOf = (event) => (event.target.dataset && event.target.dataset.i !== undefined ? Number(event.target.dataset.i) : null);
  const show = (event) => numberOf(event) !== null && showTip(event.target, rollout, numberOf(event));
  const walk = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], i = numberOf(event);
    if (!step || i === null) return;
    event.preventDefault();
    const next = event.currentTarget.querySelector(`[data-i="${i + step}"]`);
    if (next) next.focus();
  };
  const box = el("div", { class: "completion", role: "group", "aria-label": "Completion, token by token", onmouseover: show, onfocusin: show, onmouseleave: hideTip, onfocusout: hideTip, onkeydown: walk, onclick: show });
  rollout.t.forEach((t, i) => {
    const node = el("span", { class: "token " + STATE_CLASSES[at(rollout.c, i)], "data-i": i, tabindex: i ? -1 : 0 }, DATA.vocabulary[t] || "∅");
    const color = background(coloring, rollout, i, scale);
    if (color) node.style.backgroundColor = color;
    box.append(node);
  });
  if (rollout.tokens > rollout.t.length) box.append(el("span", { class: "muted" }, ` … ${number(rollout.tokens - rollout.t.length)} more tokens in the records`));
  return box;
}

function colorScale(run, coloring) {
  const { kind, low, high, shown = (v) => number(v, 2) } = COLORINGS[coloring];
  if (kind === "state") {
    return el("div", { class: "scale" }, [1, 2, 3, 4].map((s) => [el("span", { class: "token " + STATE_CLASSES[s], style: s < 3 ? `background: rgba(var(${s === 1 ? "--contract" : "--expand"}), .45)` : "" }, "token"), STATES[s]]).flat());
  }
  const limit = scaleOf(run, coloring), stop = (hue, share) => `rgba(var(${hue}), ${strength(share).toFixed(2)})`;
  const steps = [0, 0.05, 0.2, 0.5, 1];
  const right = (hue) => steps.map((s) => stop(hue, s) + ` ${kind === "amount" ? 100 * s : 50 + 50 * s}%`);
  const stops = kind === "amount" ? right("--amount") : [...steps.slice().reverse().map((s) => stop("--contract", s) + ` ${50 - 50 * s}%`), ...right("--expand")];
  return el("div", { class: "scale" }, kind === "amount" ? low : `≤ ${shown(-limit)} ${low}`, el("i", { style: `background: linear-gradient(90deg, ${stops.join(",")})` }),
    `${kind === "amount" && coloring === "probability" ? "" : "≥ "}${shown(limit)} ${high}`, el("span", {}, "· double underline: clipped low, dotted: clipped high"));
}

function rolloutFacts(rollout) {
  const version = at(rollout.version, 0);
  const facts = [["update", rollout.update], ["sample", rollout.sample < 0 ? "not numbered" : rollout.sample], ["group", rollout.group < 0 ? "–" : rollout.group], ["reward", number(rollout.reward)],
    ["advantage", Array.isArray(rollout.A) ? "per token" : number(rollout.A)], ["staleness", version === null ? "–" : rollout.update - 1 - version],
    ["tokens", number(rollout.tokens)], ["predicted change", `${signed(rollout.change)} nats`], ["expanding − contracting", `${number(rollout.expanding)} − ${number(rollout.expanding - rollout.change)}`]];
  return el("dl", { class: "facts" }, facts.map(([k, v]) => el("div", {}, el("dt", {}, k), el("dd", {}, v))));
}

const SORTERS = {
  moved: (a, b) => Math.abs(b.change) - Math.abs(a.change), expanding: (a, b) => b.change - a.change, contracting: (a, b) => a.change - b.change,
  reward: (a, b) => (b.reward ?? -1e9) - (a.reward ?? -1e9), length: (a, b) => b.tokens - a.tokens, update: (a, b) => a.update - b.update || a.sample - b.sample,
};

/** The rollouts that pass the filters, in the chosen order. */
function filtered() {
  const view = CHOSEN.view, text = view.text.trim().toLowerCase();
  const squeezed = text.replace(/\s+/g, "");
  const [least, most] = view.reward === "" ? [-Infinity, Infinity] : view.reward.split(" ").map(Number);
  return rolloutsOf(view.run).filter((r) => (view.update === "" || r.update === Number(view.update)) && (view.group === "" || r.group === Number(view.group))
    && (view.reward === "" || (r.reward !== null && r.reward >= least && r.reward <= most))
    && (!text || (r.prompt || "").toLowerCase().includes(text) || textOf(r).toLowerCase().includes(text) || textOf(r).replace(/\s+/g, "").toLowerCase().includes(squeezed)))
    .sort(SORTERS[view.sort]);
}

function listItem(rollout) {
  const chosen = keyOf(rollout) === CHOSEN.view.selected;
  return el("li", { role: "option", "aria-selected": String(chosen), "data-key": keyOf(rollout), onclick: () => selectRollout(keyOf(rollout)) },
    el("span", {}, `update ${rollout.update} · reward ${number(rollout.reward)}`), el("span", { class: "change " + (rollout.change > 0 ? "up" : "down") }, signed(rollout.change)),
    el("span", { class: "snippet" }, `${rollout.question ? rollout.question + " → " : ""}${rollout.answer}`));
}

const MOST_LISTED = 200;
function drawRollouts() {
  const list = byId("rollout-list"), detail = byId("rollout-detail"), found = filtered(), view = CHOSEN.view;
  if (!list) return;
  if (!found.some((r) => keyOf(r) === view.selected)) view.selected = found.length ? keyOf(found[0]) : null;
  const scroll = list.scrollTop;
  list.replaceChildren(...found.slice(0, MOST_LISTED).map(listItem));
  list.scrollTop = scroll;
  byId("rollout-count").textContent = `${number(found.length)} of the ${number(rolloutsOf(view.run).length)} rollouts on this page` + (found.length > MOST_LISTED ? `; the first ${MOST_LISTED} are listed` : "");
  const rollout = found.find((r) => keyOf(r) === view.selected);
  hideTip();
  if (!rollout) return detail.replaceChildren(el("p", { class: "gap" }, "No rollout passes these filters."));
  const twins = rolloutsOf(view.run).filter((r) => r.sample === rollout.sample && rollout.sample >= 0 && r.update !== rollout.update);
  detail.replaceChildren(rolloutFacts(rollout), el("div", { class: "prompt" }, rollout.prompt ?? "The prompt was not recorded."), completion(view.run, rollout, view.color), colorScale(view.run, view.color),
    el("div", { class: "row" }, rollout.group >= 0 && el("button", { type: "button", onclick: () => { Object.assign(view, { group: String(rollout.group), update: String(rollout.update) }); drawViewer(); } }, "Only this group"),
      twins.map((twin) => el("button", { type: "button", onclick: () => compareUpdates(rollout, twin) }, `Compare with update ${twin.update}`))));
}

function selectRollout(key) {
  CHOSEN.view.selected = key;
  drawRollouts();
  const item = document.querySelector(`#rollout-list [data-key="${CSS.escape(key)}"]`);
  if (item) item.scrollIntoView({ block: "nearest" });
}

function moveSelection(step) {
  const found = filtered(), place = found.findIndex((r) => keyOf(r) === CHOSEN.view.selected);
  const next = found[Math.max(0, Math.min(found.length - 1, place + step))];
  if (next) selectRollout(keyOf(next));
}

function setColoring(name) {
  CHOSEN.view.color = name;
  byId("color-choice").value = name;
  drawRollouts();
  drawComparison();
}
const cycleColoring = (step) => {
  const names = Object.keys(COLORINGS);
  setColoring(names[(names.indexOf(CHOSEN.view.color) + step + names.length) % names.length]);
};

function drawViewer() {
  const view = CHOSEN.view, place = byId("viewer-controls"), all = rolloutsOf(view.run);
  const set = (name) => (value) => { view[name] = value; name === "run" ? (view.update = view.group = "", drawViewer()) : drawRollouts(); };
  const updates = [...new Set(all.map((r) => r.update))].sort((a, b) => a - b);
  if (!updates.map(String).includes(view.update)) view.update = "";
  const rewards = [...new Set(all.map((r) => r.reward).filter((r) => r !== null))].sort((a, b) => a - b);
  const bands = rewards.length <= 6 ? rewards.map((r) => [`${r} ${r}`, number(r)]) : [0, 1, 2, 3].map((q) => [quantile(rewards, q / 4), quantile(rewards, (q + 1) / 4)]).map(([a, b]) => [`${a} ${b}`, `${number(a)} to ${number(b)}`]);
  place.replaceChildren(
    choice("Run", recordedRuns().map((run) => [run, DATA.runs[run].name]), view.run, (value) => set("run")(Number(value)), { id: "run-choice" }),
    choice("Update", [["", "all"], ...updates.map((u) => [u, u])], view.update, set("update"), { id: "update-choice" }),
    choice("Reward", [["", "any"], ...bands], view.reward, set("reward"), { id: "reward-choice" }),
    el("label", {}, "Group", el("input", { id: "group-input", inputmode: "numeric", size: 6, placeholder: "any", value: view.group, oninput: (e) => set("group")(e.target.value.trim()) })),
    el("label", {}, "Search", el("input", { id: "search", type: "search", size: 18, placeholder: "prompt or completion", value: view.text, oninput: (e) => set("text")(e.target.value) })),
    choice("Sort by", Object.entries(SORTS), view.sort, set("sort"), { id: "sort-choice" }),
    choice("Colour by", Object.entries(COLORINGS).map(([k, c]) => [k, c.label]), view.color, setColoring, { id: "color-choice" }));
  drawRollouts();
}

/** Two updates of one run: their figures over all records, and a rollout of each. */
function drawComparison() {
  const place = byId("comparison"), { run, first, second } = CHOSEN.compare;
  if (!place || run === null) return;
  const records = DATA.runs[run].records, rows = records.updates, of = (update) => rows.find((row) => row.update === update);
  const [a, b] = [of(first), of(second)];
  if (!a || !b) return place.replaceChildren(el("p", { class: "gap" }, "Two recorded updates are needed."));
  const per = (row, name, total = "tokens") => known(row[name]) / Math.max(row[total], 1);
  const figures = [
    ["Tokens", (r) => r.tokens, number], ["Reward per sample", (r) => per(r, "reward", "samples"), number], ["Negative among samples with a signal", (r) => r.negative_samples / Math.max(r.negative_samples + r.positive_samples, 1), percent],
    ["Entropy, nats", (r) => per(r, "entropy"), number], ["Mean probability of the sampled token", (r) => per(r, "probability"), number],
    ["Expanding flow, A > 0", (r) => per(r, "expanding_positive"), number], ["Expanding flow, A < 0", (r) => per(r, "expanding_negative"), number],
    ["Contracting flow, A > 0", (r) => per(r, "contracting_positive"), number], ["Contracting flow, A < 0", (r) => per(r, "contracting_negative"), number],
    ["Net flow after reweighting", (r) => (known(r.reweighted_expanding) - known(r.reweighted_contracting)) / Math.max(r.tokens, 1), signed],
    ["Ratio, standard deviation", (r) => Math.sqrt(Math.max(per(r, "ratio_square") - per(r, "ratio") ** 2, 0)), number], ["Clipped low", (r) => per(r, "clipped_low"), percent], ["Clipped high", (r) => per(r, "clipped_high"), percent],
  ];
  const table = el("div", { class: "wide" }, el("table", {}, el("thead", {}, el("tr", {}, ["All recorded tokens", `update ${first}`, `update ${second}`, "difference"].map((t) => el("th", { scope: "col" }, t)))),
    el("tbody", {}, figures.map(([label, value, show]) => el("tr", {}, el("td", {}, label), el("td", {}, show(value(a))), el("td", {}, show(value(b))), el("td", {}, show === percent ? signed(100 * (value(b) - value(a)), 2) + " points" : signed(value(b) - value(a), 2)))))));
  place.replaceChildren(table, el("div", { class: "pair" }, pairOf(run, first, second).map(([rollout, update, note]) => el("div", { class: "card" }, el("h3", {}, `Update ${update}${note}`),
    rollout ? [rolloutFacts(rollout), el("div", { class: "prompt" }, rollout.prompt ?? ""), completion(run, rollout, CHOSEN.view.color)] : el("p", { class: "gap" }, "No rollout of this update is on the page.")))), colorScale(run, CHOSEN.view.color));
}

/** The chosen or most moved sample that both updates used; else the most moved rollout of each. */
function pairOf(run, first, second) {
  const [one, two] = [first, second].map((update) => rolloutsOf(run).filter((r) => r.update === update).sort(SORTERS.moved));
  const shared = one.filter((r) => r.sample >= 0 && two.some((s) => s.sample === r.sample));
  const twin = shared.find((r) => r.sample === CHOSEN.compare.sample) || shared[0];
  if (twin) return [[twin, first, " · the same sample"], [two.find((s) => s.sample === twin.sample), second, " · the same sample"]];
  return [[one[0], first, " · moved most"], [two[0], second, " · moved most"]];
}

function compareUpdates(one, two) {
  const [a, b] = one.update < two.update ? [one, two] : [two, one];
  CHOSEN.compare = { run: CHOSEN.view.run, first: a.update, second: b.update, sample: one.sample };
  drawComparisonControls();
  byId("compare").scrollIntoView();
}

function drawComparisonControls() {
  const compare = CHOSEN.compare, place = byId("comparison-controls");
  if (!place || compare.run === null) return;
  const updates = DATA.runs[compare.run].records.updates.map((row) => row.update);
  if (!updates.includes(compare.first)) compare.first = updates[0];
  if (!updates.includes(compare.second)) compare.second = updates[updates.length - 1];
  const options = updates.map((u) => [u, u]), set = (name) => (value) => { compare[name] = Number(value); name === "run" ? drawComparisonControls() : drawComparison(); };
  place.replaceChildren(choice("Run", recordedRuns().map((run) => [run, DATA.runs[run].name]), compare.run, set("run")), choice("First update", options, compare.first, set("first"), { id: "first-choice" }), choice("Second update", options, compare.second, set("second"), { id: "second-choice" }));
  drawComparison();
}
