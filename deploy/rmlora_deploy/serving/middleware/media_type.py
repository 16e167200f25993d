"""Refuses bodies that are not declared as JSON, or as an image where one is taken as it is, before they are read.

A web page can send text, forms and undeclared bytes to any server without asking it first, but not what is declared as JSON or as
an image.
"""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from rmlora_deploy.serving.middleware.messages import read_headers, send_error

__all__ = ["BINARY_HEADER", "MediaTypeCheck"]

BINARY_HEADER = "inference-header-content-length"
"""Sent with the Open Inference Protocol's binary extension, whose refusal is the route's."""
_TAKES_IMAGES = re.compile(r"/models/[^/]+")
_REFUSAL = "The body must be JSON and declared as such: send the header  Content-Type: application/json."
_IMAGES_TOO = " An image may be the body itself, with  Content-Type: image/png  or another type of image."


class MediaTypeCheck:
    """Answers 415 to a POST that is not declared as ``application/json``, or at ``/models/{name}`` as ``image/…``.

    Args:
        app: answers the others.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            headers = read_headers(scope)
            declared = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            takes_images = _TAKES_IMAGES.fullmatch(scope["path"]) is not None
            is_image = takes_images and declared.startswith(b"image/")
            if declared != b"application/json" and not is_image and BINARY_HEADER.encode() not in headers:
                await send_error(send, scope["path"], 415, _REFUSAL + (_IMAGES_TOO if takes_images else ""))
                return
        await self._app(scope, receive, send)
