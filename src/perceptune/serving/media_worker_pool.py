"""Pool of media decoding processes, which are killed at a timeout."""

import asyncio
import base64
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from perceptune.errors import UserError
from perceptune.serving.errors import ApiError
from perceptune.serving.limits import Limits

_MODULE = "perceptune.serving.media_worker"
_START = 60.0  # seconds within which a process must start
# A one-pixel image.
_DOT = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mP4DwABAQEAHLCMmQAAAABJRU5ErkJggg==")
_GRACE = 5.0  # seconds beside the decoding timeout: the process may have to start and to import its libraries


class MediaWorkerPool:
    """A fixed number of decoding processes; each is replaced when it ends."""

    def __init__(self, limits: Limits, number: int, frames: int) -> None:
        self._limits = self.limits_of(limits, frames)
        self._seconds = limits.decode_seconds
        self._free: asyncio.Queue[_Process] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(2 * number, thread_name_prefix="perceptune-decoder")
        self._all = [_Process() for _ in range(number)]
        for one in self._all:
            one.start()  # so that no request waits for it
            self._free.put_nowait(one)

    @staticmethod
    def limits_of(limits: Limits, frames: int) -> dict[str, dict[str, float]]:
        """Return the limits passed to a process, by modality; `frames` is the number used of a video."""
        return {
            "image": {"pixels": limits.image_pixels, "kept": limits.image_kept_pixels, "side": limits.image_side},
            "audio": {"seconds": limits.audio_seconds},
            "video": {
                "pixels": limits.video_pixels, "side": limits.image_side, "seconds": limits.video_seconds,
                "encoded_frames": limits.video_encoded_frames, "frames": frames,
                "decode_seconds": limits.decode_seconds,
            },
        }  # fmt: skip

    @staticmethod
    async def try_out() -> UserError | None:
        """Return why no decoding process can be started, if so: checked before any request needs one."""
        process = _Process()
        line = (
            json.dumps({"modality": "image", "limits": {"pixels": 1, "kept": 1, "side": 1}, "size": len(_DOT)}).encode()
            + b"\n"
        )
        try:
            asking = asyncio.to_thread(process.ask, line, _DOT)
            answer, _ = await asyncio.wait_for(asyncio.shield(asking), _START)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            return UserError(
                f"the process that decodes media does not start: {error or type(error).__name__}; what "
                f"`{sys.executable} -m {_MODULE} < /dev/null` says may help"
            )
        finally:
            await asyncio.to_thread(process.end)
        return UserError(f"the process that decodes media is broken: {answer['error']}") if "error" in answer else None

    async def check(self, data: bytes, modality: str) -> bytes:
        """Return the medium in an uncompressed format; a video unchanged. Raises `ApiError` for an invalid one."""
        process = await self._free.get()
        told = {"modality": modality, "limits": self._limits[modality], "size": len(data)}
        asking = asyncio.get_running_loop().run_in_executor(
            self._threads, process.ask, json.dumps(told).encode() + b"\n", data
        )
        try:
            await asyncio.wait([asking], timeout=self._seconds + _GRACE)
            if not asking.done():
                raise ApiError(400, f"the {modality} takes too long to decode", code="invalid_media")
            answer, plain = asking.result()
        except (OSError, EOFError):
            raise ApiError(400, f"the {modality} cannot be decoded", code="invalid_media") from None
        finally:  # also when the client disconnects meanwhile
            if not asking.done():
                process.kill()
                asking.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
                # Not the same one again: its thread may still be about to start it, and to read a response from it.
                self._all[self._all.index(process)] = process = _Process()
            self._free.put_nowait(process)
        if "error" in answer:
            raise ApiError(400, answer["error"], code="invalid_media")
        return plain or data

    def close(self) -> None:
        """End the processes."""
        killed = [one.kill() for one in self._all]
        self._threads.shutdown()
        for running in killed:
            if running is not None:
                _tidy(running)


class _Process:
    """A decoding process, restarted when it has ended by itself."""

    def __init__(self) -> None:
        self._running: subprocess.Popen[bytes] | None = None
        self._over = False

    def start(self) -> subprocess.Popen[bytes]:
        # Without the server's secrets, and without threads that would count against its memory.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PERCEPTUNE_")}
        self._running = running = subprocess.Popen(
            [sys.executable, "-m", _MODULE], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**kept, "OMP_NUM_THREADS": "1"}, start_new_session=True,  # an interrupt is for the server
        )  # fmt: skip
        if self._over:  # closed while it was being started
            running.kill()
        return running

    def ask(self, line: bytes, data: bytes) -> tuple[dict[str, Any], bytes]:
        """Send a medium; return the response and the bytes after it. Raises `EOFError` or `OSError` if it has ended."""
        running = self._running
        if running is not None and running.poll() is not None:
            _tidy(running)
            running = None
        running = running or self.start()
        assert running.stdin is not None
        assert running.stdout is not None
        try:
            running.stdin.write(line + data)
            running.stdin.flush()
            answer = running.stdout.readline()
            if not answer.endswith(b"\n"):
                raise EOFError
            told: dict[str, Any] = json.loads(answer)
            plain = running.stdout.read(told.get("size", 0))
            if len(plain) < told.get("size", 0):
                raise EOFError
        except (OSError, EOFError, ValueError):
            if self._running is running:
                self._running = None
            _tidy(running)
            raise
        return told, plain

    def end(self) -> None:
        """End it while it is idle."""
        if (running := self.kill()) is not None:
            _tidy(running)

    def kill(self) -> subprocess.Popen[bytes] | None:
        """Kill it for good; a thread that is waiting for it then cleans up."""
        self._over = True
        running, self._running = self._running, None
        if running is not None:
            running.kill()
        return running


def _tidy(running: subprocess.Popen[bytes]) -> None:
    running.kill()
    running.wait()
    for pipe in (running.stdin, running.stdout):
        assert pipe is not None
        with suppress(OSError):  # data written and never read
            pipe.close()
