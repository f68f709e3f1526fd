"""A metadata service as AWS and Google have it, on loopback, that gives the notice of a spot machine's end.

`python metadata_service.py PORT [CALLS]`: quiet for the first CALLS questions. Prints its port.
"""

import http.server
import itertools
import sys

AWS_TOKEN, AWS_ACTION = "/latest/api/token", "/latest/meta-data/spot/instance-action"
GCP_PREEMPTED = "/computeMetadata/v1/instance/preempted"


def handler(quiet_calls: int) -> type[http.server.BaseHTTPRequestHandler]:
    """Answers as the two clouds document it, and refuses who asks without their headers."""
    calls = itertools.count(1)

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            right = self.path == AWS_TOKEN and self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
            self._send(200 if right else 400, "a-token")

        def do_GET(self) -> None:
            if self.path == AWS_ACTION and self.headers.get("X-aws-ec2-metadata-token") == "a-token":
                gone = next(calls) > quiet_calls
                self._send(200 if gone else 404, '{"action": "terminate", "time": "2026-11-26T12:00:00Z"}')
            elif self.path == GCP_PREEMPTED and self.headers.get("Metadata-Flavor") == "Google":
                self._send(200, "TRUE" if next(calls) > quiet_calls else "FALSE")
            else:
                self._send(401, "")

        def _send(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Metadata


if __name__ == "__main__":
    port, *calls = map(int, sys.argv[1:])
    server = http.server.HTTPServer(("127.0.0.1", port), handler(*calls or [0]))
    print(server.server_port, flush=True)
    server.serve_forever()
