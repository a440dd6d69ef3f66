"""Tests of `esper_kernel`. `cargo xtask pytorch` runs them; by hand: `python -m unittest` in this directory.

Needs torch. The kernel beside this file is batch normalisation (BP006), written by Weatherlight.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import struct
import tempfile
import threading
import unittest
from pathlib import Path

import torch

import esper_kernel
from esper_kernel import BadKernel

FILE = Path(__file__).parent / "BP006.safetensors"
DATA = FILE.read_bytes()
DIGEST = hashlib.sha256(DATA).hexdigest()


def parts() -> tuple[dict, bytes]:
    (length,) = struct.unpack_from("<Q", DATA)
    return json.loads(DATA[8 : 8 + length]), DATA[8 + length :]


def file_of(header: dict, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def with_manifest(change) -> bytes:
    header, body = parts()
    manifest = json.loads(header["__metadata__"][esper_kernel.MANIFEST_KEY])
    change(manifest)
    header["__metadata__"][esper_kernel.MANIFEST_KEY] = json.dumps(manifest)
    return file_of(header, body)


class Opening(unittest.TestCase):
    def test_the_true_bytes_open(self) -> None:
        kernel = esper_kernel.open_kernel(FILE, DIGEST)
        self.assertEqual((kernel.blueprint, kernel.digest), ("BP006", DIGEST))
        self.assertEqual(esper_kernel.guard_digest(kernel.manifest["guard"]), kernel.manifest["guard_digest"])

    def test_published_guard_digest(self) -> None:
        entry = {"index": 0, "shape": [8, 32], "dtype": "float32", "stride": [32, 1], "requires_grad": False}
        expected = "c0e3ed3adc7800b37bf6f90a7156046c87111dcef83232afad8a9e0addde055f"
        self.assertEqual(esper_kernel.guard_digest([entry]), expected)

    def test_other_bytes_do_not(self) -> None:
        flipped = DATA[:-1] + bytes([DATA[-1] ^ 1])
        for data in (flipped, DATA[:-1], DATA + b"\0", b"", b"\0" * 9):
            with self.assertRaises(BadKernel):
                esper_kernel.parse(data, DIGEST)

    def test_forged_files_are_refused_for_what_they_say(self) -> None:
        header, body = parts()

        def change_nodes(change):
            return lambda manifest: change(manifest["graph"]["nodes"])

        def of_header(change) -> bytes:
            forged, rest = parts()
            change(forged)
            return file_of(forged, rest)

        name = next(key for key in header if key != "__metadata__")
        forged = {
            "format": with_manifest(lambda manifest: manifest.update(format=99)),
            "operator": with_manifest(change_nodes(lambda nodes: nodes.append({"op": "pickle", "operands": []}))),
            "stress": with_manifest(
                change_nodes(lambda nodes: nodes.append({"op": {"stress": {"spin": {}}}, "operands": [0]}))
            ),
            "later operand": with_manifest(change_nodes(lambda nodes: nodes[-1].update(operands=[len(nodes)]))),
            "guard": with_manifest(lambda manifest: manifest["guard"][0].update(shape=[1, 1])),
            "no output": with_manifest(lambda manifest: manifest["graph"].update(outputs=[])),
            "output elsewhere": with_manifest(lambda manifest: manifest["graph"]["outputs"][0].update(node=10**9)),
            "no manifest": of_header(lambda forged: forged.pop("__metadata__")),
            "element type": of_header(lambda forged: forged[name].update(dtype="F64")),
            "shape": of_header(lambda forged: forged[name].update(shape=[1 << 40])),
            "place": of_header(lambda forged: forged[name].update(data_offsets=[4, 8])),
            "missing": of_header(lambda forged: forged.pop(name)),
            "long header": struct.pack("<Q", 1 << 60) + b"{}",
            "twice": struct.pack("<Q", 15) + b'{"a":1,"a":2}  ',
            "nan": struct.pack("<Q", 9) + b'{"a":NaN}',
            "deep": struct.pack("<Q", 200_000) + b"[" * 200_000,
            "not finite": DATA[:-4] + struct.pack("<f", float("nan")),
        }
        for what, data in forged.items():
            with self.subTest(what), self.assertRaises(BadKernel):
                esper_kernel.parse(data)


class Running(unittest.TestCase):
    def test_statistics_are_remembered_and_used(self) -> None:
        module = esper_kernel.load(FILE)
        shape = module.kernel.manifest["guard"][0]["shape"]
        x = torch.randn(shape) * 3 + 5
        before = {name: value.clone() for name, value in module.named_buffers()}
        self.assertTrue(before)
        module.train()
        for _ in range(3):
            module(x).sum().backward()
        after = dict(module.named_buffers())
        self.assertTrue(any(not torch.equal(before[name], after[name]) for name in before))
        module.eval()
        frozen = {name: value.clone() for name, value in module.named_buffers()}
        module(x)
        self.assertTrue(all(torch.equal(frozen[name], value) for name, value in module.named_buffers()))

    def test_state_dict_has_the_manifests_names_and_moves_between_modules(self) -> None:
        module, other = esper_kernel.load(FILE), esper_kernel.load(FILE)
        self.assertEqual(set(module.state_dict()), set(module.kernel.tensors))
        with torch.no_grad():
            next(module.parameters()).add_(1)
        other.load_state_dict(module.state_dict())
        self.assertTrue(torch.equal(next(module.parameters()), next(other.parameters())))

    def test_inputs_that_do_not_fit_are_refused_and_any_batch_does(self) -> None:
        module = esper_kernel.load(FILE)
        shape = module.kernel.manifest["guard"][0]["shape"]
        self.assertEqual(list(module(torch.randn([3, *shape[1:]])).shape), [3, *shape[1:]])
        for wrong in (torch.randn([2, *[size + 1 for size in shape[1:]]]), torch.randn(shape).double()):
            with self.assertRaises(ValueError):
                module(wrong)


class Fetching(unittest.TestCase):
    def test_a_broken_download_is_resumed_and_wrong_bytes_are_dropped(self) -> None:
        asked: list[str | None] = []

        class Service(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                span = self.headers.get("Range")
                asked.append(span)
                start = int(span.removeprefix("bytes=").removesuffix("-")) if span else 0
                data = DATA if "wrong" not in self.path else DATA[:-1] + b"!"
                self.send_response(206 if span else 200)
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                self.wfile.write(data[start:])

            def log_message(self, *_: object) -> None:
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service) as server, tempfile.TemporaryDirectory() as folder:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                url = f"http://127.0.0.1:{server.server_address[1]}/kernels/{DIGEST}"
                path = Path(folder) / "kernel"
                Path(f"{path}.part").write_bytes(DATA[:100])
                esper_kernel.fetch(url, DIGEST, path)
                self.assertEqual((path.read_bytes(), asked), (DATA, ["bytes=100-"]))
                with self.assertRaises(BadKernel):
                    esper_kernel.fetch(f"{url}?wrong", DIGEST, Path(folder) / "other")
                self.assertEqual(sorted(entry.name for entry in Path(folder).iterdir()), ["kernel"])
            finally:
                server.shutdown()
                thread.join()


if __name__ == "__main__":
    unittest.main()
