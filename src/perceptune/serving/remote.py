"""Media at URLs in requests, with errors in the format of OpenAI's clients."""

from perceptune.serving.errors import ApiError
from perceptune.utils import remote
from perceptune.utils.remote import RemoteError, TooLargeError


class Remote(remote.Remote):
    """Fetches the media that clients name."""

    def fetch(self, url: str, most: int, seconds: float) -> bytes:
        """Fetch at most `most` bytes. Raises `ApiError`, whose message contains no more than the client may know."""
        try:
            return super().fetch(url, most, seconds)
        except TooLargeError as error:
            message = f"the medium at this address is larger than {most:,} bytes"
            raise ApiError(413, message, code="media_too_large") from error
        except RemoteError as error:
            raise ApiError(400, str(error), code="remote_media") from error
