"""Images in the body of a request: files of a form (multipart/form-data), or base64 in JSON."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, NamedTuple

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from lit_vision.serve.guard import Limits

FORM, JSON = "multipart/form-data", "application/json"
_MOST_FIELDS = 10  # of a form, beside the files
_LONGEST_NAME = 1000  # characters


class Upload(NamedTuple):
    """Bytes of an image file, and its name, which is only repeated in the answer."""

    name: str
    data: bytes


async def read_uploads(request: Request, limits: Limits) -> list[Upload]:
    """Return the images of a request, at least one.

    Raises:
        HTTPException: 400 for a body that is not as documented, 413 for too many images, 415 for another type.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == FORM:
        uploads = await _from_form(request, limits)
    elif content_type == JSON:
        uploads = _from_json(await request.body())
    else:
        raise HTTPException(415, f"Content-Type: send {FORM} with files, or {JSON}")
    if not uploads:
        raise HTTPException(400, "images: none given; add a file, or an entry to images")
    if len(uploads) > limits.images:
        raise HTTPException(413, f"images: {len(uploads)} given, at most {limits.images} a request")
    return [Upload(upload.name[:_LONGEST_NAME], upload.data) for upload in uploads]


async def _from_form(request: Request, limits: Limits) -> list[Upload]:
    """Return the files of a form, whatever their fields are called."""
    parser = MultiPartParser(
        request.headers, request.stream(), max_files=limits.images, max_fields=_MOST_FIELDS, max_part_size=1000
    )
    parser.spool_max_size = limits.body_bytes + 1  # nothing of an upload is written to a disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        too_many = error.message.startswith("Too many")
        raise HTTPException(413 if too_many else 400, f"body: {error.message}") from None
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        return [Upload(file.filename or "", await file.read()) for file in files]
    finally:
        await form.close()


def _from_json(body: bytes) -> list[Upload]:
    """Return the images of {"images": [{"name": TEXT, "data": BASE64}, ...]}; an entry may be the base64 alone."""
    try:
        values: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, "body: is not valid JSON") from None
    images = values.get("images") if isinstance(values, dict) else None
    if not isinstance(images, list):
        raise HTTPException(400, 'body: give {"images": [{"name": "cat.jpg", "data": "BASE64"}]}')
    uploads = []
    for i, image in enumerate(images):
        entry = image if isinstance(image, dict) else {"data": image}
        name, data = entry.get("name", ""), entry.get("data")
        if not isinstance(name, str) or not isinstance(data, str):
            raise HTTPException(400, f"images[{i}]: give base64 text as data, and text as name if any")
        try:
            uploads.append(Upload(name, base64.b64decode(data, validate=True)))
        except (binascii.Error, ValueError):
            raise HTTPException(400, f"images[{i}]: its data is not base64") from None
    return uploads
