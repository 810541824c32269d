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
        self.upload_keys, self.sent, self.on_kill = {}, 0, None
        self.denied = self.first = self.change = None
        self.gone = False  # uploads that others have given up
        self.digests = {}
        self.log, self.lock = [], threading.Lock()
        self.page = 1000
        self.ignore_range = self.ignore_match = False

    def etag(self, key):
        return '"%s"' % hashlib.md5(self.objects[key]).hexdigest()

    def is_taken(self, key):
        """Has somebody been first, now or just before?"""
        if self.first and key == self.first[0]:
            self.objects[key], self.first = self.first[1], None
        return key in self.objects

    def fault(self, *names):
        with self.lock:
            if self.faults and self.faults[0] in names:
                return self.faults.pop(0)
        return None


def sum256(data):
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def handler(store):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer waits 40 ms

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
            if "uploads" in query:
                return self.list_uploads(query["prefix"][0])
            if "uploadId" in query:
                return self.list_parts(query)
            if key in store.digests:
                self.extra = {"x-amz-meta-moec-digest": store.digests[key]}
            if key not in store.objects:
                return self.answer(404, b"<Error><Code>NoSuchKey</Code>")
            if key == store.change and "bytes=0-" not in \
                    self.headers.get("Range", ""):
                store.objects[key] += b"x"
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

        def no_upload(self):
            self.answer(404, b"<Error><Code>NoSuchUpload</Code></Error>")

        def list_uploads(self, prefix):
            found = [(key, name) for name, key in store.upload_keys.items()
                     if name in store.uploads]
            self.answer(200, ("<R>" + "".join(
                f"<Upload><Key>{key.split('/', 1)[1]}</Key>"
                f"<UploadId>{name}</UploadId></Upload>" for key, name in found
                if key.split("/", 1)[1].startswith(prefix)) + "</R>").encode())

        def list_parts(self, query):
            parts = store.uploads.get(query["uploadId"][0])
            if parts is None:
                return self.no_upload()
            after = int(query.get("part-number-marker", ["0"])[0])
            numbers = [n for n in sorted(parts) if n > after]
            more = len(numbers) > store.page
            xml = "".join(
                f"<Part><PartNumber>{n}</PartNumber><ETag>{parts[n][0]}</ETag>"
                f"<Size>{len(parts[n][1])}</Size><ChecksumSHA256>"
                f"{sum256(parts[n][1])}</ChecksumSHA256></Part>"
                for n in numbers[:store.page])
            return self.answer(200, (
                f"<R><IsTruncated>{str(more).lower()}</IsTruncated>{xml}</R>"
            ).encode())

        def checked(self):
            want = self.headers.get("x-amz-checksum-sha256")
            if store.fault("bent"):  # on its way
                return False
            return want == sum256(self.body)

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
                parts = store.uploads.get(query["uploadId"][0])
                if parts is None or store.gone:
                    return self.no_upload()
                if store.denied == "part":
                    return self.answer(403, b"<Error><Code>AccessDenied</Code>"
                                       b"<Message>no</Message></Error>")
                store.sent += 1
                parts[int(query["partNumber"][0])] = (etag, self.body)
                if store.fault("part", "kill") == "kill":
                    store.on_kill()
            elif self.headers.get("If-None-Match") and store.is_taken(key):
                return self.answer(412)
            else:
                store.objects[key] = self.body
                store.digests[key] = self.headers.get("x-amz-meta-moec-digest",
                                                      "")
            said = sum256(b"x" if store.fault("wrong-sum") else self.body)
            return self.answer(200, ETag=etag, x_amz_checksum_sha256=said)

        def do_POST(self):
            got = self.begin()
            if got is None:
                return
            key, query = got
            if "uploads" in query:
                name = f"upload/{len(store.upload_keys)}+="
                store.uploads[name] = {}
                store.upload_keys[name] = key
                store.digests[key] = self.headers.get("x-amz-meta-moec-digest",
                                                      "")
                return self.answer(200, f"<R><UploadId>{name}</UploadId></R>"
                                   .encode())
            parts = store.uploads.pop(query["uploadId"][0], None)
            if parts is None:
                return self.no_upload()
            said = re.findall(r"<PartNumber>(\d+)</PartNumber><ETag>([^<]*)",
                              self.body.decode())
            if store.fault("late"):  # 200, and an error in the body
                return self.answer(200, b"<Error><Code>InternalError</Code>"
                                   b"</Error>")
            assert said == [(str(i), parts[i][0]) for i in sorted(parts)]
            store.objects[key] = b"".join(parts[i][1] for i in sorted(parts))
            if store.fault("lost"):
                self.close_connection = True
                return self.connection.close()
            return self.answer(200, b"<R/>")

        def do_DELETE(self):
            got = self.begin()
            if got is None:
                return
            if "uploadId" in got[1]:
                store.uploads.pop(got[1]["uploadId"][0], None)
            else:
                store.objects.pop(got[0], None)
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
