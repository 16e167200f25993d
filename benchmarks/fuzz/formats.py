"""Changes that know a binary format: headers of safetensors, ONNX models, images, and what stands where a file is expected."""

from __future__ import annotations

import json
import os
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message

from benchmarks.fuzz.mutations import HOSTILE, any_of, change_bytes, change_json, change_value, numbers_in_bytes

__all__ = ["KINDS", "change_image", "change_onnx", "change_safetensors", "put_instead", "replace_file"]

KINDS = ("missing", "empty", "directory", "pipe", "device", "link to itself", "link to nothing", "large")
"""What may stand where a file is expected."""


def replace_file(rng: random.Random, path: Path) -> str:
    """Put something else where the file was, and return what."""
    kind = rng.choice(KINDS)
    put_instead(kind, path, rng)
    return kind


def put_instead(kind: str, path: Path, rng: random.Random) -> None:
    """Put nothing, an empty file, a directory, a pipe, a device, a link or a huge file where the file was."""
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to(rng.choice(("/dev/zero", "/dev/null", "/dev/urandom")))
    elif kind == "link to itself":
        path.symlink_to(path.name)
    elif kind == "link to nothing":
        path.symlink_to("no-such-file")
    elif kind == "large":
        with open(path, "wb") as file:  # a sparse file: it takes no room on the disk
            file.write(rng.choice((b"", b"{", b"\x08\x00\x00\x00TORT")))
            file.truncate(9 << 28)  # more than any reader takes, and than protobuf can


def _safetensors_header(rng: random.Random, content: bytes) -> bytes:
    (length,) = struct.unpack_from("<Q", content)
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    kind = rng.randrange(6)
    if kind == 0:
        encoded = change_json(rng, content[8 : 8 + length])
    else:
        names = [name for name in header if name != "__metadata__"]
        name = rng.choice(names)
        entry = header[name]
        if kind == 1:
            entry["dtype"] = rng.choice(
                ("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "F8_E8M0", "", 1)
            )
        elif kind == 2:
            entry["shape"] = rng.choice(
                (entry["shape"][::-1], [], [0], [-1], [2**62, 4], [1, *entry["shape"]], HOSTILE[:3], [2**40, 0])
            )
        elif kind == 3:
            entry["data_offsets"] = rng.choice(
                ([0, 0], [0, 2**63], [4, 0], entry["data_offsets"][::-1], [0, len(data)], [2**70, 1])
            )
        elif kind == 4:
            header[
                rng.choice((name + "x", "base_model.model.x.lora_A.weight", name.upper(), "0/logits", "x/y", name[:-7]))
            ] = header.pop(name)
        else:
            other = rng.choice(names)
            header[name], header[other] = header[other], header[name]
        encoded = json.dumps(header).encode()
    declared = rng.choice((len(encoded),) * 6 + (2**63, 2**40, 0, len(encoded) - 1, len(encoded) + 100))
    return struct.pack("<Q", max(0, declared)) + encoded + data


def _safetensors_numbers(rng: random.Random, content: bytes) -> bytes:
    """Put NaN, infinity and huge numbers among the tensors' content."""
    (length,) = struct.unpack_from("<Q", content)
    data = bytearray(content)
    for _ in range(rng.choice((1, 3, 50))):
        at = 8 + length + 4 * rng.randrange(max(1, (len(content) - 8 - length) // 4))
        data[at : at + 4] = struct.pack("<f", rng.choice((np.nan, np.inf, -np.inf, 3e38, 1e-45, 0.0)))
    return bytes(data)


change_safetensors = any_of(
    (5, _safetensors_header), (2, _safetensors_numbers), (2, change_bytes), (1, numbers_in_bytes)
)


def _messages(message: Message, found: list[Message], depth: int = 0) -> list[Message]:
    """Return ``message`` and the messages inside it."""
    found.append(message)
    for field, value in message.ListFields() if depth < 8 else ():
        if field.type == field.TYPE_MESSAGE:
            for item in value if field.is_repeated else [value]:
                _messages(item, found, depth + 1)
    return found


def _other_scalar(rng: random.Random, field: Any, value: Any) -> Any:
    if field.type in (field.TYPE_STRING, field.TYPE_BYTES):
        text = rng.choice(
            (
                "",
                "x",
                "Add",
                "MatMul",
                "Loop",
                "If",
                "Scan",
                "no.such",
                "../x.data",
                "/dev/zero",
                "model.onnx",
                "-1",
                str(2**62),
                "0",
            )
        )
        if field.type == field.TYPE_BYTES:
            return rng.choice((b"", value[:-1], value * 2, value[: len(value) // 2], text.encode()))
        return rng.choice((text, text, value + "x", value[:-1]))
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return rng.choice((0.0, float("nan"), float("inf"), -1.0))
    small = field.type in (field.TYPE_INT32, field.TYPE_ENUM)
    numbers = (0, 1, -1, 2, 3, 7, 11, 16, 23, 100, 2**31 - 1) + (() if small else (2**40, 2**62, -(2**62)))
    return rng.choice((*numbers, value + 1))


def _set(rng: random.Random, message: Message) -> None:
    """Change, repeat or remove one field of ``message``."""
    fields = message.ListFields()
    if not fields:
        return
    field, value = rng.choice(fields)
    name, many = field.name, field.is_repeated
    action = rng.randrange(4)
    if action == 0 or (field.type == field.TYPE_MESSAGE and not many):
        message.ClearField(name)
    elif many:
        at = rng.randrange(len(value))
        if action == 1:
            del value[at]
        elif field.type == field.TYPE_MESSAGE:
            value.add().CopyFrom(value[at])
        elif action == 2:
            value.append(_other_scalar(rng, field, value[at]))
        else:
            value[at] = _other_scalar(rng, field, value[at])
    else:
        setattr(message, name, _other_scalar(rng, field, value))


def _onnx_fields(rng: random.Random, content: bytes) -> bytes:
    model = onnx.ModelProto.FromString(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        try:
            _set(rng, rng.choice(_messages(model, [])))
        except (ValueError, TypeError):  # this value does not fit the field's type
            continue
    return model.SerializeToString()


def _onnx_tensors(rng: random.Random, content: bytes) -> bytes:
    """Change dimensions, type, content or location of a weight."""
    model = onnx.ModelProto.FromString(content)
    tensor = rng.choice(model.graph.initializer)
    kind = rng.randrange(5)
    if kind == 0:
        tensor.dims[:] = rng.choice(([], [0], [-1], [2**40], [2**62, 4], [1, 1, 1], list(tensor.dims)[::-1], [3] * 70))
    elif kind == 1:
        tensor.data_type = rng.randrange(-1, 30)
    elif kind == 2:
        tensor.raw_data = change_bytes(rng, tensor.raw_data)
    elif kind == 3:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key in ("location", "offset", "length"):
            value = rng.choice(
                ("x.data", "model.onnx", "../model.onnx", "/dev/zero", "0", "-1", "4", str(2**62), "1e3", "", "\0", ".")
            )
            if rng.random() < 0.8:
                tensor.external_data.add(
                    key=key, value="model.onnx.data" if key == "location" and rng.random() < 0.7 else value
                )
    else:
        tensor.name = rng.choice(("", "x", "logits", "input_ids", model.graph.initializer[0].name))
    return model.SerializeToString()


def _onnx_metadata(rng: random.Random, content: bytes) -> bytes:
    """Change the description of the LoRA inputs, if the model has one."""
    model = onnx.ModelProto.FromString(content)
    for prop in model.metadata_props:
        value = change_value(rng, json.loads(prop.value))
        prop.value = (
            json.dumps(value).encode(errors="replace").decode()
            if rng.random() < 0.8
            else rng.choice(("", "{", "[1]", "[" * 5000))
        )
    return model.SerializeToString()


def change_onnx(rng: random.Random, content: bytes) -> bytes:
    """Change a serialized ONNX model: its fields, its weights, its description or its bytes."""
    kinds = (_onnx_fields, _onnx_tensors, _onnx_metadata, change_bytes, numbers_in_bytes)
    for mutate in rng.choices(kinds, (4, 3, 1, 2, 1), k=rng.choice((1, 1, 2))):
        try:
            content = mutate(rng, content)
        except (DecodeError, ValueError, IndexError):  # bytes were changed first, and it is no model any more
            continue
    return content


def _png_size(rng: random.Random, content: bytes) -> bytes:
    """Declare another size in a PNG, with a checksum that is right."""
    if content[:4] != b"\x89PNG":
        return numbers_in_bytes(rng, content)
    header = bytearray(content[12:29])
    header[4:12] = struct.pack(">II", *(rng.choice((0, 1, 50_000, 2**31 - 1, 20_000)) for _ in "wh"))
    if rng.random() < 0.5:
        header[rng.randrange(12, 17)] = rng.randrange(256)
    return content[:12] + bytes(header) + struct.pack(">I", zlib.crc32(bytes(header))) + content[33:]


change_image = any_of((3, change_bytes), (3, numbers_in_bytes), (2, _png_size))
