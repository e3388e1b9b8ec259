"""huggingface_hub against a hub on loopback."""

from contextlib import contextmanager
from unittest.mock import patch


@contextmanager
def online(address, home):
    """huggingface_hub asks this address, with a home of its own and no waits between tries."""
    import huggingface_hub
    from huggingface_hub import constants

    from trainhooks.checkpoints.sources import hub as hub_module

    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    with (
        patch.object(constants, "HF_HUB_OFFLINE", False),
        patch.object(constants, "HF_HOME", str(home)),
        patch.object(constants, "ENDPOINT", address),
        patch.object(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template),
        patch.object(hub_module, "WAIT_SECONDS", 0.0),
    ):
        yield
    huggingface_hub.close_session()
