"""What can go wrong with a request's content, its policy and its judges. Each is told apart, and none lets text out."""

from __future__ import annotations

from typing import Any

from serve.gateway.errors import SERVER, RequestError

INVALID = "invalid_request_error"


class BadRequest(RequestError):
    """The request cannot be read, or asks for what is not offered."""

    status, code, kind = 400, "invalid_request_error", INVALID


class UnknownModel(RequestError):
    """There is no policy of this name."""

    status, code, kind = 404, "model_not_found", INVALID


class TooLarge(RequestError):
    """The body is longer than allowed."""

    status, code, kind = 413, "body_too_large", INVALID


class NotJSON(RequestError):
    """The body says that it is something else. A browser sends JSON to another site only with that site's leave."""

    status, code, kind = 415, "unsupported_media_type", INVALID


class Strange(RequestError):
    """A page of another site asks, through a browser on this machine, where no key would stop it."""

    status, code, kind = 403, "cross_site", INVALID


class RequestTimeout(RequestError):
    """The request took longer than one may, or its body did not come in."""

    status, code, kind = 504, "request_timeout", SERVER


class SlowBody(RequestError):
    """The body did not come in."""

    status, code, kind = 408, "request_timeout", INVALID


class JudgeError(RequestError):
    """There is no verdict, so nothing is delivered. Its subclasses say why."""

    def body(self) -> dict[str, Any]:
        """The JSON body of an answer that is kept back for it."""
        body = super().body()
        body["error"]["message"] += ": no text is delivered unjudged; try again"
        return body


class JudgeUnreachable(JudgeError):
    """No replica of the judges answers, or the one that was asked has died."""

    status, code, kind = 503, "judge_unreachable", SERVER


class JudgeTimeout(JudgeError):
    """The verdict did not come in time."""

    status, code, kind = 504, "judge_timeout", SERVER


class JudgeUnusable(JudgeError):
    """What came back is no verdict."""

    status, code, kind = 502, "judge_unusable", SERVER


class TooLongToJudge(JudgeError):
    """Question and answer are longer than a judge reads."""

    status, code, kind = 400, "context_length_exceeded", INVALID

    def body(self) -> dict[str, Any]:
        """Another try would end as this one."""
        return RequestError.body(self)


class PolicyUnreachable(RequestError):
    """No replica of the policy answers, or the one that was asked has died."""

    status, code, kind = 503, "policy_unreachable", SERVER


class PolicyFailed(RequestError):
    """The policy answered with an error of its own, or with what is no answer."""

    status, code, kind = 502, "policy_failed", SERVER
