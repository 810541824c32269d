# SPDX-License-Identifier: Apache-2.0
"""Conversions into moto's S3: the bytes of a local one, also after kill -9.
Environment: MOEC_CONVERT and MOEC_ROOT. Needs moto[server,s3] and boto3."""
import os
import subprocess
import sys
import tempfile
import time

import boto3
from moto.server import ThreadedMotoServer

CONVERT, ROOT = os.environ["MOEC_CONVERT"], os.environ["MOEC_ROOT"]
PREFIX = "a dir/out"
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
url = "http://%s:%d" % server.get_host_and_port()
s3 = boto3.client("s3", endpoint_url=url, region_name="us-east-1",
                  aws_access_key_id="a", aws_secret_access_key="b")
s3.create_bucket(Bucket="models")
env = {**os.environ, "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "a",
       "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}


def convert(out, *words):
    return subprocess.Popen(
        [CONVERT, "convert", "wide", out, "--ep", "2", "--quiet", *words],
        cwd=tmp, env=env)


def uploads():
    return s3.list_multipart_uploads(Bucket="models").get("Uploads", [])


def compare():
    keys = [o["Key"] for o in s3.list_objects_v2(Bucket="models")["Contents"]]
    got = {k[len(PREFIX) + 1:]: s3.get_object(Bucket="models", Key=k)
           ["Body"].read() for k in keys}
    want = os.path.join(tmp, "want")
    assert set(got) == set(os.listdir(want)), got.keys()
    for name in set(got) - {"provenance.json"}:
        with open(os.path.join(want, name), "rb") as f:
            assert f.read() == got[name], name
        s3.delete_object(Bucket="models", Key=f"{PREFIX}/{name}")
    s3.delete_object(Bucket="models", Key=PREFIX + "/provenance.json")
    assert uploads() == []


with tempfile.TemporaryDirectory() as tmp:
    subprocess.run([sys.executable, os.path.join(
        ROOT, "tests", "support", "make_wide_tree.py"), os.path.join(
        ROOT, "fixtures", "checkpoints", "qwen2_moe"), tmp + "/wide", "12"],
        check=True)
    assert convert("want").wait() == 0
    there = "s3://models/" + PREFIX
    assert convert(there, "--part-bytes", "5MiB").wait() == 0
    compare()
    p = convert(there, "--part-bytes", "5MiB", "--threads", "1")
    while p.poll() is None and not uploads():
        time.sleep(0.01)
    p.kill()
    p.wait()
    assert convert(there).wait() == 0
    compare()
    both = [convert(there, "--ranks", k) for k in "01"]
    assert [p.wait() for p in both] == [0, 0]
    subprocess.run([CONVERT, "finalize", there], env=env, check=True)
    compare()
server.stop()
print("ok: moto has what a directory gets")
