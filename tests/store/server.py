# SPDX-License-Identifier: Apache-2.0
"""A small object store with faults, of Python's own library alone: S3's list,
GET with ranges, HEAD, PUT, multipart; or a plain server that cannot list.
Checks checksums and conditions. Not signatures: moto does that (moto.sh)."""
import base64
import hashlib
import http.server
import re
import threading
import urllib.parse


class Store:
    """Objects by key, and what is to go wrong: faults is a list of names,
    each used up by one request that it fits."""

    def __init__(self):
        self.objects, self.uploads, self.faults = {}, {}, []
        self.digests = {}
        self.log, self.lock = [], threading.Lock()
        self.page = 1000
        self.ignore_range = self.ignore_match = False

    def etag(self, key):
        return '"%s"' % hashlib.md5(self.objects[key]).hexdigest()

    def fault(self, *names):
        with self.lock:
            if self.faults and self.faults[0] in names:
                return self.faults.pop(0)
        return None


def handler(store):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        extra = {}

        def answer(self, status, body=b"", **headers):
            self.send_response(status)
            for name, value in self.extra.items():
                self.send_header(name, value)
            self.extra = {}
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            if "Content_Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def begin(self):
            """Key and query of the request, or None where a fault ended it."""
            store.log.append((self.command, self.path, dict(self.headers)))
            url = urllib.parse.urlsplit(self.path)
            n = int(self.headers.get("Content-Length") or 0)
            self.body = self.rfile.read(n)
            fault = store.fault("500", "503", "429", "drop", "403", "stall")
            if fault == "drop":
                self.close_connection = True
                self.connection.close()
                return None
            if fault == "stall":
                threading.Event().wait(3)
                self.close_connection = True
                self.connection.close()
                return None
            if fault:
                self.answer(int(fault), b"<Error><Code>Slow\x1b[31m\n"
                            b"Down</Code></Error>", Retry_After="0")
                return None
            return (urllib.parse.unquote(url.path).lstrip("/"),
                    urllib.parse.parse_qs(url.query, keep_blank_values=True))

        def do_GET(self):
            got = self.begin()
            if got is None:
                return
            key, query = got
            if "list-type" in query:
                return self.list(key, query)
            if key in store.digests:
                self.extra = {"x-amz-meta-moec-digest": store.digests[key]}
            if key not in store.objects:
                return self.answer(404, b"<Error><Code>NoSuchKey</Code>")
            data, etag = store.objects[key], store.etag(key)
            match = self.headers.get("If-Match")
            if match and match != etag and not store.ignore_match:
                return self.answer(412)
            m = re.match(r"bytes=(\d+)-(\d+)$", self.headers.get("Range", ""))
            if not m or store.ignore_range:
                return self.answer(200, data, ETag=etag)
            first, last = int(m[1]), min(int(m[2]), len(data) - 1)
            part = data[first:last + 1]
            if store.fault("short"):  # says all, sends half, hangs up
                self.answer(206, part[:len(part) // 2], ETag=etag,
                            Content_Length=str(len(part)),
                            Content_Range=f"bytes {first}-{last}/{len(data)}")
                self.close_connection = True
                return None
            if store.fault("wrong-range"):
                return self.answer(206, data[:len(part)], ETag=etag,
                                   Content_Range=f"bytes 0-{len(part) - 1}/"
                                   f"{len(data)}")
            return self.answer(206, part, ETag=etag, Content_Range=(
                f"bytes {first}-{last}/{len(data)}"))

        do_HEAD = do_GET

        def list(self, bucket, query):
            prefix = query.get("prefix", [""])[0]
            after = query.get("continuation-token", [""])[0]
            keys = sorted(k[len(bucket.rstrip("/")) + 1:] for k in
                          store.objects if k.startswith(bucket.rstrip("/")))
            keys = [k for k in keys if k.startswith(prefix) and k > after]
            page, more = keys[:store.page], len(keys) > store.page
            xml = "".join(
                f"<Contents><Key>{k.replace('&', '&amp;')}</Key>"
                f"<ETag>{store.etag(bucket.rstrip('/') + '/' + k)}</ETag>"
                f"<Size>{len(store.objects[bucket.rstrip('/') + '/' + k])}"
                "</Size></Contents>" for k in page)
            if more:
                xml += ("<NextContinuationToken>" + page[-1] +
                        "</NextContinuationToken>")
            self.answer(200, ("<?xml version='1.0'?><ListBucketResult>" + xml +
                              "</ListBucketResult>").encode())

        def checked(self):
            want = self.headers.get("x-amz-checksum-sha256")
            got = base64.b64encode(hashlib.sha256(self.body).digest()).decode()
            return want == got

        def do_PUT(self):
            got = self.begin()
            if got is None:
                return
            key, query = got
            if self.headers.get("Content-Type") != \
                    "application/octet-stream":
                return self.answer(400, b"<Error><Code>NoBytes</Code>")
            if not self.checked():
                return self.answer(400, b"<Error><Code>BadDigest</Code>")
            etag = '"%s"' % hashlib.md5(self.body).hexdigest()
            if "uploadId" in query:
                parts = store.uploads[query["uploadId"][0]]
                parts[int(query["partNumber"][0])] = (etag, self.body)
            elif self.headers.get("If-None-Match") and key in store.objects:
                return self.answer(412)
            else:
                store.objects[key] = self.body
                store.digests[key] = self.headers.get("x-amz-meta-moec-digest",
                                                      "")
            return self.answer(200, ETag=etag)

        def do_POST(self):
            got = self.begin()
            if got is None:
                return
            key, query = got
            if "uploads" in query:
                name = f"upload/{len(store.uploads)}+="
                store.uploads[name] = {}
                store.digests[key] = self.headers.get("x-amz-meta-moec-digest",
                                                      "")
                return self.answer(200, f"<R><UploadId>{name}</UploadId></R>"
                                   .encode())
            parts = store.uploads.pop(query["uploadId"][0])
            said = re.findall(r"<PartNumber>(\d+)</PartNumber><ETag>([^<]*)",
                              self.body.decode())
            if store.fault("late"):  # 200, and an error in the body
                return self.answer(200, b"<Error><Code>InternalError</Code>"
                                   b"</Error>")
            assert said == [(str(i), parts[i][0]) for i in sorted(parts)]
            store.objects[key] = b"".join(parts[i][1] for i in sorted(parts))
            return self.answer(200, b"<R/>")

        def do_DELETE(self):
            got = self.begin()
            if got is not None:
                store.uploads.pop(got[1]["uploadId"][0], None)
                self.answer(204)

    return Handler


def serve(store):
    """Start; returns the server and its URL."""
    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            pass

    server = Server(("127.0.0.1", 0), handler(store))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"
