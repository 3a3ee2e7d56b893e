"""Uploads from requests whose bodies arrive in the chunks that a test chooses."""

import asyncio
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from edvit.errors import ImageError, SlowUploadError, TooLargeError
from edvit.runtime.http import upload as limits
from edvit.runtime.http.body import FILE, NPY
from edvit.runtime.http.upload import MAX_BODY_BYTES, MAX_FIELD_BYTES, Upload, discard_body, read_upload

FORM = "multipart/form-data; boundary=xyz"
MALFORMED = "the form is malformed: send one file as multipart field `file`"
NO_FILE = "the form has no file: send it as multipart field `file`"


class Sender:
    """Sends a body in chunks; with `end=None` it goes silent after them, with `"http.disconnect"` it hangs up."""

    def __init__(self, chunks, content_type=FORM, *, end="http.request", **headers):
        self.chunks = list(chunks)
        self.end = end
        named = {"content-type": content_type, **headers}
        raw = [(name.encode(), value.encode("latin-1")) for name, value in named.items()]
        self.request = Request({"type": "http", "method": "POST", "headers": raw}, self.receive)

    async def receive(self):
        if self.chunks:
            return {"type": "http.request", "body": self.chunks.pop(0), "more_body": True}
        if self.end is None:
            await asyncio.Event().wait()
        return {"type": self.end, "body": b"", "more_body": False}


def read(chunks, content_type=FORM, **changes):
    return asyncio.run(read_upload(Sender(chunks, content_type, **changes).request))


def part(disposition, data=b"", *headers):
    head = [b"Content-Disposition: form-data; " + disposition, *headers]
    return b"--xyz\r\n" + b"\r\n".join(head) + b"\r\n\r\n" + data + b"\r\n"


def field(number, data=b"value"):
    return part(b'name="field-%d"' % number, data)


def file(data=b"pixels", *headers, name=b"file"):
    return part(b'name="%s"; filename="x.png"' % name, data, *headers)


END = b"--xyz--\r\n"
WHOLE = field(0) + file(b"pix\r\n--xyels", b"Content-Type: image/png") + field(1) + END
UPLOAD = Upload(b"pix\r\n--xyels", FILE)


# --- whole bodies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", ["image/png", "IMAGE/PNG", "image/png; name=x"])
def test_a_body_that_is_no_form_is_the_file(content_type):
    assert read([b"pix", b"els"], content_type) == Upload(b"pixels", "image/png")


@pytest.mark.parametrize("content_type", ["image/png", FORM, "multipart/form-data"])
def test_an_empty_body_is_an_empty_upload_whatever_its_type(content_type):
    assert read([], content_type).data == b""


def test_bodies_up_to_the_limit_pass():
    half = bytes(MAX_BODY_BYTES // 2)
    announced = {"content-length": str(MAX_BODY_BYTES)}
    assert len(read([half, half], "image/png", **announced).data) == MAX_BODY_BYTES


@pytest.mark.parametrize("content_type", ["image/png", FORM])
def test_a_body_is_held_once(content_type):
    body = file(bytes(10_000_000)) + END
    chunks = (body[i : i + 65_536] for i in range(0, len(body), 65_536))

    async def receive():
        chunk = next(chunks, b"")
        return {"type": "http.request", "body": chunk, "more_body": bool(chunk)}

    async def peak():
        request = Request({"type": "http", "headers": [(b"content-type", content_type.encode())]}, receive)
        tracemalloc.start()
        try:
            upload = await read_upload(request)
            return len(upload.data), tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    size, held = asyncio.run(peak())
    assert size >= 10_000_000
    assert held < 1.5 * size


@pytest.mark.parametrize("content_type", ["image/png", FORM])
def test_a_body_that_grows_past_the_limit_is_read_to_its_end_and_refused(content_type):
    sender = Sender([file(bytes(MAX_BODY_BYTES)), b"more", b"and more"], content_type)
    with pytest.raises(TooLargeError, match="over 20,000,000 bytes"):
        asyncio.run(read_upload(sender.request))
    assert sender.chunks == []


@pytest.mark.parametrize(
    ("headers", "left"), [({}, []), ({"expect": "100-continue"}, [b"pixels"])], ids=["sends", "asks-first"]
)
def test_a_body_that_announces_too_much_is_refused_unread(headers, left):
    sender = Sender([b"pixels"], "image/png", **{"content-length": str(MAX_BODY_BYTES + 1)}, **headers)
    with pytest.raises(TooLargeError, match="over 20,000,000 bytes"):
        asyncio.run(read_upload(sender.request))
    assert sender.chunks == left


def test_a_body_that_nobody_wants_is_thrown_away_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(limits, "DRAIN_BYTES", 10)
    sender = Sender([b"12345678"] * 3)
    asyncio.run(discard_body(sender.request))
    assert sender.chunks == [b"12345678"]


@pytest.mark.parametrize("content_type", ["image/png", FORM])
def test_a_body_that_stalls_is_too_slow(monkeypatch, content_type):
    monkeypatch.setattr(limits, "BODY_S", 0.05)
    with pytest.raises(SlowUploadError, match=r"did not arrive within 0\.05 s"):
        read([WHOLE[:-4]], content_type, end=None)


@pytest.mark.parametrize("content_type", ["image/png", FORM])
def test_a_client_that_hangs_up_is_told_apart(content_type):
    with pytest.raises(ImageError, match="the connection closed before the end of the body"):
        read([WHOLE[:-4]], content_type, end="http.disconnect")


# --- forms -------------------------------------------------------------------------------------------------


def test_a_form_byte_by_byte():
    assert read([WHOLE[i : i + 1] for i in range(len(WHOLE))]) == UPLOAD


@given(st.data())
@settings(deadline=None)
def test_any_split_of_a_form_gives_the_same_upload(data):
    pieces = st.sampled_from([b"\r", b"\n", b"-", b"--", b"\r\n--", b"\r\n--xy", b"\r\n--x\r\n--xy", b"z", b"\0\xff"])
    content = data.draw(st.lists(pieces, max_size=12).map(b"".join).filter(lambda c: b"\r\n--xyz" not in c))
    value = data.draw(st.sampled_from([b"", b"v", b"\r\n--xy"]))
    body = b"".join(data.draw(st.permutations([field(0, value), file(content, b"Content-Type: " + NPY.encode())])))
    body += END + data.draw(st.sampled_from([b"", b"epilogue"]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=20)))
    chunks = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert read(chunks) == Upload(content, NPY)


@pytest.mark.parametrize(
    ("header", "media_type"),
    [
        (b"Content-Type: application/x-npy", NPY),
        (b"CONTENT-TYPE:application/x-npy", NPY),
        (b"Content-Type: application/x-npy; version=1", FILE),
        (b"Content-Type: image/png", FILE),
        (b"X-Other: application/x-npy", FILE),
    ],
)
def test_only_a_part_that_says_exactly_so_is_an_array(header, media_type):
    assert read([file(b"x", header), END]).media_type == media_type


def test_the_type_of_one_part_is_not_that_of_the_next():
    array = part(b'name="note"', b"x", b"Content-Type: application/x-npy")
    assert read([array, file(b"x"), END]).media_type == FILE


def test_an_empty_file_is_an_empty_upload():
    assert read([file(b""), END]) == Upload(b"", FILE)


def test_a_part_without_a_file_name_is_no_file():
    with pytest.raises(ImageError, match=NO_FILE):
        read([part(b'name="file"', b"pixels"), END])


@pytest.mark.parametrize("body", [file(name=b"picture") + END, field(0) + END])
def test_a_form_without_field_file(body):
    with pytest.raises(ImageError, match=NO_FILE):
        read([body])


def test_a_form_may_have_eight_fields_of_a_megabyte():
    large = [field(i, bytes(MAX_FIELD_BYTES)) for i in range(8)]
    assert read([*large[:4], file(), *large[4:], END]) == Upload(b"pixels", FILE)


BAD = {
    "second file": file() + file() + END,
    "second file under another name": file() + file(name=b"picture") + END,
    "second file after another name": file(name=b"picture") + file() + END,
    "nine fields": b"".join(map(field, range(9))) + file() + END,
    "large field": field(0, bytes(MAX_FIELD_BYTES + 1)) + file() + END,
    "no name": part(b'filename="x.png"', b"pixels") + END,
    "no disposition": b"--xyz\r\nContent-Type: image/png\r\n\r\npixels\r\n" + END,
    "no header": b"--xyz\r\n\r\npixels\r\n" + END,
    "bad header": b"--xyz\r\nnonsense\r\n\r\npixels\r\n" + END,
    "other boundary": WHOLE.replace(b"xyz", b"abc"),
    "no form": b"pixels",
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("size", [1_000, 10_000_000], ids=["chunks", "at-once"])
def test_a_malformed_form_is_refused_and_read_to_its_end(name, size):
    body = BAD[name] + bytes(10_000)
    # A client that asked before it sent is sending by now, and its body is read on as well.
    sender = Sender([body[i : i + size] for i in range(0, len(body), size)], expect="100-continue")
    with pytest.raises(ImageError) as caught:
        asyncio.run(read_upload(sender.request))
    assert str(caught.value) == MALFORMED
    assert (caught.value.code, caught.value.http_status) == ("bad-image", 400)
    assert sender.chunks == []


def test_a_form_cut_anywhere_before_its_end_is_malformed():
    end = WHOLE.index(END) + len(b"--xyz--")
    for cut in range(1, end):
        with pytest.raises(ImageError) as caught:
            read([WHOLE[:cut]])
        assert str(caught.value) == MALFORMED, cut
    assert read([WHOLE[:end]]) == UPLOAD


@pytest.mark.parametrize("options", ["", "; boundary", "; boundary=", "; bound=xyz", f"; boundary={'x' * 300}"])
def test_a_form_without_a_usable_boundary_is_malformed(options):
    with pytest.raises(ImageError) as caught:
        read([WHOLE], f"multipart/form-data{options}")
    assert str(caught.value) == MALFORMED


def test_a_boundary_may_be_quoted():
    assert read([WHOLE], 'Multipart/Form-Data; charset=utf-8; boundary="xyz"') == UPLOAD
