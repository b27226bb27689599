"""Serve runs over HTTP with the API of OpenAI's chat completions.

Examples:
  perceptune serve runs/mine
  perceptune serve dog=runs/mine cat=runs/other --port 8001 decode.beams=3
  PERCEPTUNE_API_KEY=secret perceptune serve runs/mine --host 0.0.0.0
"""

import importlib.util
import os
from dataclasses import fields
from functools import partial
from pathlib import Path

from perceptune.cli.parsing import Namespace, Parser, any_text, split_words
from perceptune.errors import UserError

KEY_VARIABLE = "PERCEPTUNE_API_KEY"
HOST, PORT = "127.0.0.1", 8000


def add_arguments(parser: Parser) -> None:
    """Add the options; the limits are the fields of `serving.limits.Limits`."""
    from perceptune.serving.limits import Limits

    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help="run folders; clients name a run NAME")
    prefixes = ("decode.", "eval.", "cache.")  # NAME=RUN is a run
    parser.add_overrides("decode.* keys, such as decode.beams=3", beside="runs", prefixes=prefixes)
    parser.add_argument("--host", default=HOST, help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="port to listen on (default: %(default)s)")
    parser.add_argument("--device", help="torch device (default: a GPU if there is one)")
    parser.add_trust()
    parser.add_argument("--access-log", action="store_true", help="print a line of JSON per request on standard error")
    parser.add_argument("--decoders", type=int, default=2, help="media decoding processes (default: %(default)s)")
    parser.add_argument("--examples", type=int, default=0, metavar="N", help="publish N rows of each run's test data")
    access = parser.add_argument_group("access")
    access.add_argument(
        "--api-key", metavar="KEY",
        help=f"key required on every route but /health and the page's files; prefer ${KEY_VARIABLE} or a file",
    )  # fmt: skip
    access.add_argument("--api-key-file", metavar="FILE", help="file that holds the API key")
    access.add_argument("--no-api-key", action="store_true",
                        help="allow access from other machines, or from any web page, without a key")  # fmt: skip
    access.add_argument("--allowed-hosts", type=any_text, metavar="A,B", help="additional host names of this server")
    access.add_argument("--allowed-local-media-path", metavar="DIR",
                        help="folder whose files requests may name as file:// URLs (default: none)")  # fmt: skip
    access.add_argument("--allow-remote-media", action="store_true",
                        help="allow http(s) URLs in requests, from the hosts of --allowed-media-domains")  # fmt: skip
    access.add_argument("--allowed-media-domains", type=any_text, metavar="A,B",
                        help="comma-separated hosts of remote media; host:port for other ports")  # fmt: skip
    access.add_argument("--allowed-origins", type=any_text, metavar="A,B",
                        help="web origins whose pages may send requests, such as https://app.example; `*` allows any "
                        "(default: none)")  # fmt: skip
    limits = parser.add_argument_group("limits")
    for one in fields(Limits):
        limits.add_argument(
            f"--{one.name.replace('_', '-')}", type=int if one.type == "int" else float, default=one.default,
            metavar="N", help=f"{one.metadata['help']} (default: %(default)s)",
        )  # fmt: skip


def run(options: Namespace) -> int:
    """Load the runs and serve until interrupted."""
    for module in ("fastapi", "prometheus_client", "uvicorn"):
        if importlib.util.find_spec(module) is None:
            raise UserError(f"`serve` needs {module}: run `pip install 'perceptune[serve]'`")
    from perceptune.serving.app import Access, make_app
    from perceptune.serving.drain import Drain
    from perceptune.serving.examples import load_examples
    from perceptune.serving.limits import Limits
    from perceptune.serving.local import LocalFiles
    from perceptune.serving.origins import parse_origins
    from perceptune.serving.remote import Remote
    from perceptune.serving.runs import Runs, describe_runs, load_runs
    from perceptune.serving.server import hosts_of, is_loopback, listening, make_server

    key = _key(options)
    origins = parse_origins(_listed(options.allowed_origins))
    if key is None and not options.no_api_key:
        remedy = f"set a key (${KEY_VARIABLE} or --api-key-file), or say --no-api-key"
        if not is_loopback(options.host):
            raise UserError(f"--host {options.host} is open to other machines: {remedy}")
        if "*" in origins:
            raise UserError(f"--allowed-origins: `*` lets any page in a browser ask: {remedy}")
    if options.decoders < 1:
        raise UserError("--decoders: at least 1")
    domains = frozenset(_listed(options.allowed_media_domains))
    if options.allow_remote_media != bool(domains):
        raise UserError("remote media need both --allow-remote-media and --allowed-media-domains")
    folder = options.allowed_local_media_path
    local = LocalFiles(Path(folder)) if folder else None
    limits = Limits(**{one.name: getattr(options, one.name) for one in fields(Limits)})
    access = Access(
        key, hosts_of(options.host, _listed(options.allowed_hosts)), local, Remote(domains) if domains else None,
        origins, partial(load_examples, number=options.examples, limits=limits),
    )  # fmt: skip
    described = describe_runs(options.runs, trust=options.trust)
    names, address = ", ".join(one.name for one in described), f"http://{options.host}:{options.port}"
    failed: list[BaseException] = []

    def load() -> Runs:
        return load_runs(described, limits, overrides=options.overrides, trust=options.trust, device=options.device)

    def ended(error: BaseException | None) -> None:
        if error is None:
            print(f"serving {names} at {address}/v1, with a page at {address}/", flush=True)
        else:
            failed.append(error)
            server.should_exit = True

    drain = Drain()
    app = make_app(
        load, limits, access, decoders=options.decoders, ended=ended, drain=drain, access_log=options.access_log
    )
    server = make_server(app, limits, options.host, options.port, drain=drain)
    with listening(options.host, options.port) as bound:
        print(f"loading {names}; {address}/health says when that is done", flush=True)
        server.run(sockets=[bound])
    if failed:
        raise failed[0]
    return 0 if server.started else 1


def _key(options: Namespace) -> str | None:
    """Return the API key. Raises `UserError` for different ones and for one that is not valid."""
    content = _content(options.api_key_file) if options.api_key_file else None
    given = {"--api-key": options.api_key, "--api-key-file": content, KEY_VARIABLE: os.environ.get(KEY_VARIABLE)}
    found = {name: value.strip() for name, value in given.items() if value is not None}
    if len({*found.values()}) > 1:
        raise UserError(f"{' and '.join(found)} name different API keys: give one")
    for name, value in found.items():
        if not value or not value.isascii() or any(char.isspace() for char in value):
            raise UserError(f"{name}: an API key is ASCII text without blanks, not nothing")
        return value
    return None


def _content(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--api-key-file: `{file}` cannot be read ({error})") from error


def _listed(text: str | None) -> list[str]:
    return [word.lower() for word in split_words(text)]
