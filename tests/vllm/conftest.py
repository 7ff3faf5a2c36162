import pytest
import vllm_setup


@pytest.fixture(scope="session", autouse=True)
def vllm():
    """vLLM itself; `make test-vllm` has an environment with it."""
    for name, value in vllm_setup.ENVIRONMENT.items():
        pytest.MonkeyPatch().setenv(name, value)  # for the processes of the tests as well, to the end
    return pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of the tiny model that the engine of this process is made with."""
    return vllm_setup.model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session", autouse=True)
def one_engine(vllm):
    """Trainers of a process share an engine for each model: to make one takes longer than the tests it is for."""
    with pytest.MonkeyPatch.context() as patch:
        vllm_setup.share_engines(patch.setattr)
        yield
