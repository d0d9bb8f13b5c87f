#!/usr/bin/env python3
"""Reads the logs of an Iris data directory, by docs/LOG_FORMAT.md alone.

    log_reader.py DIR [--log K] [--bodies] [--user U]      as `iris log dump --json`
    log_reader.py DIR --checkpoint [--log K] [--user U]    as `iris log dump --checkpoint --json`

A second opinion: it shares no code with the switch, so where both print the same, the page describes what
is on the disk. It reads, and never writes. It keeps to the page's order of things, and knows no cleverness.
"""

import argparse
import json
import os
import struct
import sys
from zlib import crc32

SEGMENT_HEADER = 4096
FRAME_HEADER = 48
FRAME_MAX = 1024 * 1024
RECORD_HEADER = 40
ITEM_HEADER = 8
BLOCK = 64 * 1024
FRAME_KINDS = {1: "data", 2: "seal", 3: "checkpoint", 4: "end"}
RECORD_KINDS = {1: "entry", 2: "hard_state", 3: "snapshot", 4: "compact", 5: "reloc", 6: "conf", 7: "heads"}


class NotWhole(Exception):
    """Bytes are not what the page says that they are."""


def padded(length):
    return (length + 7) // 8 * 8


def superblock(directory):
    """The newest one that is whole."""
    newest = None
    for name in ("SUPER.a", "SUPER.b"):
        try:
            with open(os.path.join(directory, name), "rb") as file:
                block = file.read()
        except FileNotFoundError:
            continue
        if len(block) != 4096 or block[:8] != b"IRIS-SUP":
            continue
        if struct.unpack_from("<I", block, 4092)[0] != crc32(block[:4092]):
            continue
        version, logs = struct.unpack_from("<II", block, 8)
        if version != 2:
            raise NotWhole(f"{name} has version {version}")
        sequence, = struct.unpack_from("<Q", block, 48)
        size, = struct.unpack_from("<Q", block, 64)
        if newest is None or sequence > newest["sequence"]:
            newest = {"sequence": sequence, "logs": logs, "size": size}
    if newest is None:
        raise NotWhole(f"{directory} has no superblock that is whole")
    return newest


def numbered(directory, ending):
    """Position and path of each file named by one, in order."""
    found = []
    if os.path.isdir(directory):
        for name in os.listdir(directory):
            stem = name.removesuffix(ending)
            if name.endswith(ending) and len(stem) == 16 and all(d in "0123456789abcdef" for d in stem):
                found.append((int(stem, 16), os.path.join(directory, name)))
    return sorted(found)


# ---------------------------------------------------------------------------------------------- frames


def segment_header(data):
    """The header as a line, or the word for what is wrong."""
    head = data[:SEGMENT_HEADER]
    if not any(head):
        return "segment_unused"
    if len(head) < 80 or head[:8] != b"IRIS-SEG" or struct.unpack_from("<I", head, 76)[0] != crc32(head[:76]):
        return "segment_header"
    version, log = struct.unpack_from("<II", head, 8)
    if version != 2:
        return "segment_header"
    incarnation, first, salt, size, prev = struct.unpack_from("<QQQQI", head, 40)
    return {
        "what": "segment", "lsn": first, "log": log, "incarnation": incarnation, "salt": f"{salt:016x}",
        "segment_bytes": size, "prev_crc": f"{prev:08x}",
    }


def frame_header(data, at):
    """A frame header with a good CRC, or nothing."""
    head = data[at:at + FRAME_HEADER]
    if len(head) < FRAME_HEADER:
        return None
    names = ("hdr_crc", "body_crc", "body_len", "kind", "records", "lsn", "synced_lsn", "salt", "prev_crc")
    frame = dict(zip(names, struct.unpack_from("<IIIHHQQQI", head)))
    if crc32(head[4:]) != frame["hdr_crc"]:
        return None
    frame["bytes"] = FRAME_HEADER + frame["body_len"]
    if frame["bytes"] > FRAME_MAX or frame["bytes"] % 8:
        return None
    return frame


class Segment:
    """The bytes of one segment and where they belong."""

    def __init__(self, first, size, data):
        self.first, self.size, self.data = first, size, data
        self.header = segment_header(data)

    def belongs(self, at, salt=None):
        """The header of a frame that belongs at this offset, or nothing."""
        frame = frame_header(self.data, at)
        if frame is None or frame["lsn"] != self.first + at or frame["synced_lsn"] > frame["lsn"]:
            return None
        if salt is not None and frame["salt"] != salt:
            return None
        return frame if at + frame["bytes"] <= self.size else None

    def is_whole(self, at, frame):
        body = self.data[at + FRAME_HEADER:at + frame["bytes"]]
        return len(body) == frame["body_len"] and crc32(body) == frame["body_crc"]

    def next_frame(self, at, salt):
        """Offset of the next frame header that belongs where it is, from `at` on."""
        while at + FRAME_HEADER <= len(self.data):
            if struct.unpack_from("<Q", self.data, at + 16)[0] == self.first + at and self.belongs(at, salt):
                return at
            at += 8
        return None

    def salt(self):
        """The header's, else that of the first frame, else that of the longest row of whole frames."""
        if isinstance(self.header, dict):
            return int(self.header["salt"], 16)
        first = self.belongs(SEGMENT_HEADER)
        if first:
            return first["salt"]
        longest, salt = 0, None
        at = self.next_frame(SEGMENT_HEADER, None)
        while at is not None:
            frame, begin, last = self.belongs(at), at, None
            while frame and self.is_whole(at, frame) and last in (None, frame["prev_crc"]):
                at, last, row_salt = at + frame["bytes"], frame["hdr_crc"], frame["salt"]
                frame = self.belongs(at, row_salt)
            if at == begin:
                at += 8
            elif at - begin > longest:
                longest, salt = at - begin, row_salt
            at = self.next_frame(at, None)
        return salt

    def judge(self, at, salt, prev):
        """The frame at an offset and the word for what is wrong with it, or None."""
        frame = frame_header(self.data, at)
        if frame is None:
            return None, "header" if any(self.data[at:at + FRAME_HEADER]) else "zero"
        if frame["salt"] != salt or frame["lsn"] != self.first + at or frame["synced_lsn"] > frame["lsn"]:
            return None, "stale"
        if at + frame["bytes"] > len(self.data):
            return (frame if at + frame["bytes"] <= self.size else None), "length"
        if not self.is_whole(at, frame):
            return frame, "body"
        if prev is not None and frame["prev_crc"] != prev:
            return None, "chain"
        return frame, None

    def written_end(self, at):
        """The offset behind the last byte from `at` on that is not zero."""
        return at + len(self.data[at:].rstrip(b"\0"))


def bad(lsn, to, fault):
    return {"what": "bad", "lsn": lsn, "to": to, "fault": fault}


def segment_lines(segment, bodies):
    first, salt = segment.first, segment.salt()
    prev = None
    if isinstance(segment.header, dict):
        yield segment.header
        prev = int(segment.header["prev_crc"], 16)
    elif segment.header == "segment_unused" and salt is None:
        return
    else:
        yield bad(first, first + min(SEGMENT_HEADER, len(segment.data)), segment.header)
    if salt is None:
        return
    at = SEGMENT_HEADER
    while True:
        frame, fault = segment.judge(at, salt, prev)
        if fault is None:
            yield from frame_lines(segment, at, frame, bodies)
            at, prev = at + frame["bytes"], frame["hdr_crc"]
            if frame["kind"] == 4:
                return
            continue
        prev = None
        if fault == "chain":
            yield bad(first + at, first + at, fault)
            continue
        if frame:
            behind = min(at + frame["bytes"], len(segment.data))
        else:
            behind = segment.next_frame(at + 8, salt)
        to = segment.written_end(at) if behind is None else behind
        if to == at:
            return
        yield bad(first + at, first + to, fault)
        at = to
        if behind is None or frame and frame["kind"] == 4:
            return


# --------------------------------------------------------------------------------- records and commands


def frame_lines(segment, at, frame, bodies):
    lsn = segment.first + at
    yield {
        "what": "frame", "lsn": lsn, "bytes": frame["bytes"],
        "kind": FRAME_KINDS.get(frame["kind"], str(frame["kind"])), "records": frame["records"],
        "synced_lsn": frame["synced_lsn"], "crc": f"{frame['hdr_crc']:08x}",
        "prev_crc": f"{frame['prev_crc']:08x}",
    }
    body, offset, found = segment.data[at + FRAME_HEADER:at + frame["bytes"]], 0, 0
    while offset < len(body):
        record = record_header(body, offset, frame["salt"], lsn + FRAME_HEADER + offset)
        end = offset + RECORD_HEADER + (record["len"] if record else 0)
        if record is None or end > len(body):
            break
        yield from record_lines(record, body[offset + RECORD_HEADER:end], bodies)
        offset = offset + RECORD_HEADER + padded(record["len"])
        found += 1
    if offset != len(body) or found != frame["records"]:
        yield bad(lsn, lsn + frame["bytes"], "records")


def record_header(body, at, salt, lsn):
    head = body[at:at + RECORD_HEADER]
    if len(head) < RECORD_HEADER:
        return None
    names = ("len", "type", "flags", "shard", "term", "hdr_crc", "index", "a", "b")
    record = dict(zip(names, struct.unpack("<IBBHIIQQQ", head)))
    covered = struct.pack("<QQ", salt, lsn) + head[:12] + head[16:]
    if crc32(covered) != record["hdr_crc"] or record["type"] not in RECORD_KINDS:
        return None
    record["lsn"] = lsn
    return record


def record_lines(record, payload, bodies):
    kind = RECORD_KINDS[record["type"]]
    yield {
        "what": "record", "lsn": record["lsn"], "kind": kind,
        "shard": None if record["shard"] == 0xffff else record["shard"], "term": record["term"],
        "index": record["index"], "a": record["a"], "b": record["b"], "bytes": len(payload),
    }
    lsn = record["lsn"] + RECORD_HEADER
    if kind == "heads":
        for at in range(0, len(payload) - len(payload) % 16, 16):
            shard, index = struct.unpack_from("<H6xQ", payload, at)
            yield {"what": "head", "shard": shard, "index": index}
    elif kind in ("entry", "reloc"):
        at = 0
        while at < len(payload):
            command = item(payload, at)
            if command is None:
                yield {"what": "unknown", "lsn": lsn + at}
                return
            yield command_line(lsn + at, command, bodies)
            at += ITEM_HEADER + len(command)


def item(payload, at):
    """The command in the item at an offset, or nothing."""
    if at + ITEM_HEADER > len(payload):
        return None
    length, crc = struct.unpack_from("<II", payload, at)
    command = payload[at + ITEM_HEADER:at + ITEM_HEADER + length]
    if len(command) != length or crc32(payload[at:at + 4] + command) != crc:
        return None
    return command


def command_line(lsn, command, bodies):
    try:
        return decode_command(lsn, command, bodies)
    except (struct.error, UnicodeDecodeError, NotWhole):
        return {"what": "unknown", "lsn": lsn}


def decode_command(lsn, command, bodies):
    kind, first, second, third = struct.unpack_from("<BBBB", command)
    if kind == 1:
        body_len, epoch, n, time_ms, seq, ident = struct.unpack_from("<IQQQQ16s", command, 4)
        (to, sender, device), body = names(command, 56, (first, second, third))
        if len(body) != body_len:
            raise NotWhole("an append of another length")
        line = {
            "what": "append", "lsn": lsn, "to": to, "seq": seq, "from": sender, "device": device,
            "epoch": f"{epoch:016x}", "n": n, "time_ms": time_ms, "id": ident.hex(),
            "body_bytes": len(body), "body_crc": f"{crc32(body):08x}",
        }
        return line | {"body_hex": body.hex()} if bodies else line
    if kind == 2:
        (user, device), rest = names(command, 4, (first, second))
        line = {"what": "register", "lsn": lsn, "user": user, "device": device}
    elif kind == 3:
        (user, device), rest = names(command, 16, (first, second))
        seq, = struct.unpack_from("<Q", command, 8)
        line = {"what": "cursor", "lsn": lsn, "user": user, "device": device, "seq": seq}
    elif kind == 4:
        (user,), rest = names(command, 16, (first,))
        oldest, = struct.unpack_from("<Q", command, 8)
        line = {"what": "trim", "lsn": lsn, "user": user, "oldest": oldest}
    else:
        raise NotWhole(f"command {kind}")
    if rest:
        raise NotWhole("a command of another length")
    return line


def names(command, at, lengths):
    """Texts of these lengths, and what follows them."""
    texts = []
    for length in lengths:
        text = command[at:at + length]
        if len(text) != length:
            raise NotWhole("a name is cut")
        texts.append(text.decode("utf-8"))
        at += length
    return texts, command[at:]


# ----------------------------------------------------------------------------------------- checkpoints


def stream(data):
    """What the blocks of a checkpoint file hold, one after another."""
    out = []
    for number, at in enumerate(range(0, len(data), BLOCK)):
        block = data[at:at + BLOCK]
        if len(block) < 9:
            raise NotWhole(f"the block at byte {at} is cut")
        crc, length = struct.unpack_from("<II", block)
        if crc32(struct.pack("<QI", number, length) + block[8:]) != crc or length != len(block) - 8:
            raise NotWhole(f"the block at byte {at} is not what was written")
        out.append(block[8:])
    return b"".join(out)


def checkpoint_lines(data, user):
    content = stream(data)
    if content[:8] != b"IRIS-CKP":
        raise NotWhole("no checkpoint")
    version, log = struct.unpack_from("<II", content, 8)
    if version != 1:
        raise NotWhole(f"a checkpoint of version {version}")
    incarnation, size, scan_lsn, prev, sections = struct.unpack_from("<QQQII", content, 40)
    yield {
        "what": "checkpoint", "lsn": scan_lsn, "log": log, "incarnation": incarnation,
        "segment_bytes": size, "prev_crc": f"{prev:08x}", "sections": sections, "bytes": len(data),
    }
    at = 72
    for _ in range(sections):
        shard, applied, length = struct.unpack_from("<H6xQQ", content, at)
        state = content[at + 24:at + 24 + length]
        yield from section_lines(shard, applied, state, user)
        at += 24 + length
    if content[at:] != b"IRIS-END" + struct.pack("<IQ", sections, len(content)):
        raise NotWhole("the trailer does not fit")


class State:
    """The state of a shard, read from front to back."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, length):
        taken = self.data[self.at:self.at + length]
        if len(taken) != length:
            raise NotWhole("the state of a shard is cut")
        self.at += length
        return taken

    def u64(self):
        return int.from_bytes(self.take(8), "little")

    def name(self):
        return self.take(self.u64()).decode("utf-8")


def section_lines(shard, applied, data, wanted):
    state = State(data)
    if int.from_bytes(state.take(2), "little") != shard or state.u64() != applied:
        raise NotWhole("a state of another shard or entry")
    users, entries, shown = state.u64(), 0, []
    for _ in range(users):
        user, oldest, count = state.name(), state.u64(), state.u64()
        slots = state.take(12 * count)
        devices = [(state.name(), state.u64()) for _ in range(state.u64())]
        firsts, head = [], oldest - 1
        for nth in range(count):
            firsts.append(head + 1)
            head += slot_entries(slots[12 * nth:12 * nth + 12])
        entries += head + 1 - oldest
        if user == wanted:
            shown.append({"what": "user", "shard": shard, "user": user, "oldest": oldest,
                          "head": head})
            shown.extend({"what": "device", "device": name, "cursor": cursor} for name, cursor in devices)
            shown.extend(slot_line(first, slots[12 * nth:12 * nth + 12]) for nth, first in enumerate(firsts))
    pairs, _homes = state.u64(), state.u64()
    state.take(20 * pairs)
    if state.at != len(data):
        state.u64()  # where new inboxes begin
    if state.at != len(data):
        raise NotWhole("the state of a shard goes on behind its end")
    yield {
        "what": "section", "shard": shard, "applied": applied, "bytes": len(data),
        "crc": f"{crc32(data):08x}", "users": users, "entries": entries, "pairs": pairs,
    }
    yield from shown


GAP, RUN = (1 << 54) - 1, (1 << 54) - 2


def slot_entries(slot):
    bits = int.from_bytes(slot, "little")
    return bits >> 54 if bits & GAP == RUN else 1


def slot_line(seq, slot):
    bits = int.from_bytes(slot, "little")
    position, units, time = bits & GAP, bits >> 54 & (1 << 14) - 1, bits >> 68
    if position == RUN:
        units, time = 0, 0
    return {
        "what": "inbox_entry", "seq": seq, "lsn": None if position >= RUN else position,
        "bytes": 8 * units, "time_ms": 16_000 * time,
    }


# ------------------------------------------------------------------------------------------------ main


def concerns(line, user):
    roles = {"append": ("to", "from"), "register": ("user",), "cursor": ("user",), "trim": ("user",)}
    return any(line[role] == user for role in roles.get(line["what"], ()))


def lines(args):
    block = superblock(args.dir)
    logs = range(block["logs"]) if args.log is None else [args.log]
    checkpoints = 0
    for log in logs:
        if args.checkpoint:
            found = numbered(os.path.join(args.dir, f"ckpt-{log:02}"), ".ckpt")
            for _, path in found[-1:]:
                checkpoints += 1
                with open(path, "rb") as file:
                    yield from checkpoint_lines(file.read(), args.user)
            continue
        for first, path in numbered(os.path.join(args.dir, f"log-{log:02}"), ".seg"):
            with open(path, "rb") as file:
                segment = Segment(first, block["size"], file.read(block["size"]))
            for line in segment_lines(segment, args.bodies):
                if args.user is None or concerns(line, args.user):
                    yield line
    if args.checkpoint and not checkpoints:
        raise NotWhole("there is no checkpoint")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dir")
    parser.add_argument("--log", type=int)
    parser.add_argument("--user")
    parser.add_argument("--bodies", action="store_true")
    parser.add_argument("--checkpoint", action="store_true")
    try:
        for line in lines(parser.parse_args()):
            print(json.dumps(line, separators=(",", ":"), ensure_ascii=False))
    except NotWhole as error:
        sys.exit(f"log_reader: {error}")
    except BrokenPipeError:
        sys.stderr.close()


if __name__ == "__main__":
    main()
