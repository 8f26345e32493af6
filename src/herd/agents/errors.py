"""What can go wrong around agents, for people and routes; what goes wrong inside a tool is a result that the model reads."""

from __future__ import annotations

from herd.base.errors import HerdError


class AgentError(HerdError):
    """A turn that could not be run to an answer."""

    code = "agent"


class SessionBusyError(AgentError):
    """A session has a turn that is not over: turns of one session follow one another."""

    code = "session_busy"
    exit_code = 1


class TurnStateError(AgentError):
    """Something was asked of a turn that does not go with where it stands, such as an output that it does not wait for."""

    code = "turn_state"
    exit_code = 2
