"""A flow that a command begins is one run of Prefect's, whatever becomes of the answer to its creation."""

from typing import Any
from uuid import uuid4

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import FlowRunCreate
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import run_flow
from prefect.states import Pending, to_state_create


def one_run(flow: Flow[..., Any], **parameters: Any) -> Any:
    """As `flow(**parameters)`.

    That creates a run without a key, so that one whose answer was lost, and which Prefect's client creates again, would
    wait in Prefect for ever.
    """
    with get_client(sync_client=True) as client:
        run = FlowRunCreate(
            flow_id=client.create_flow(flow),
            flow_version=flow.version,
            parameters=flow.serialize_parameters(parameters),
            state=to_state_create(Pending()),
            idempotency_key=uuid4().hex,
        )
        answer = client.request("POST", "/flow_runs/", json=run.model_dump(mode="json", exclude_unset=True))
    return run_flow(flow, FlowRun.model_validate(answer.json()), parameters)
