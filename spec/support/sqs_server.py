# A stand-in for Amazon SQS: sqs_server.py PORT DIRECTORY. It knows the credentials AKID / "secret" and
# the session token "token", and checks the signature of each request, independently of the example.
# It appends each message that it accepts as a line of JSON to the file `messages` in its directory.
# While there is a file `error`, its first line is the code of the answer 400 to all signed requests.

import calendar
import hashlib
import hmac
import json
import os
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

directory = sys.argv[2]


def find_fault(handler, body):
    """Returns why the signature of a request is wrong, or None."""
    given = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=AKID/(\d{8})/([a-z0-9-]+)/sqs/aws4_request, "
        r"SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})",
        handler.headers.get("authorization", ""))
    if not given:
        return "IncompleteSignatureException"
    date, region, names, signature = given.groups()
    moment = handler.headers["x-amz-date"]
    skew = time.time() - calendar.timegm(time.strptime(moment, "%Y%m%dT%H%M%SZ"))
    if not moment.startswith(date) or abs(skew) > 300:
        return "InvalidSignatureException"
    token = handler.headers.get("x-amz-security-token")
    needed = {"host", "x-amz-date", "x-amz-target"} | ({"x-amz-security-token"} if token else set())
    if not needed <= set(names.split(";")) or token not in (None, "token"):
        return "InvalidClientTokenId"
    canonical = "\n".join(
        [handler.command, handler.path, ""]
        + ["%s:%s" % (name, handler.headers[name].strip()) for name in names.split(";")]
        + ["", names, hashlib.sha256(body).hexdigest()])
    scope = "/".join([date, region, "sqs", "aws4_request"])
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = b"AWS4secret"
    for part in [date, region, "sqs", "aws4_request",
                 "\n".join(["AWS4-HMAC-SHA256", moment, scope, digest])]:
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return None if key.hex() == signature else "InvalidSignatureException"


class Queue(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/x-amz-json-1.0")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        wrong = find_fault(self, body)
        if wrong:
            return self.answer(403, {"__type": "com.amazon.coral.service#" + wrong})
        if os.path.exists(directory + "/error"):
            with open(directory + "/error") as file:
                code = file.readline().strip()
            return self.answer(400, {"__type": "com.amazonaws.sqs#" + code})
        if self.headers["x-amz-target"] != "AmazonSQS.SendMessage" \
                or self.headers["content-type"] != "application/x-amz-json-1.0":
            return self.answer(400, {"__type": "com.amazonaws.sqs#UnsupportedOperation"})
        with open(directory + "/messages", "a") as file:
            file.write(json.dumps(json.loads(body)) + "\n")
        return self.answer(200, {"MessageId": "1"})

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Queue).serve_forever()
