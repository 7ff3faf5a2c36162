import pytest
import verl_setup


@pytest.fixture(scope="session", autouse=True)
def verl():
    """verl itself, for CPUs; `make test-verl` has an environment with it."""
    if not verl_setup.installed():
        pytest.skip("verl is not installed here: make test-verl")
    verl_setup.prepare()


@pytest.fixture(scope="session")
def model(verl, tmp_path_factory):
    """The folder of the recipe's tiny Qwen2 and its tokenizer of 41 characters."""
    import toy_task

    return toy_task.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def ray_cluster(verl):
    """Ray for all worker groups of the session: to start it takes longer than what they do."""
    with verl_setup.ray_cluster():
        yield
