# SPDX-License-Identifier: Apache-2.0
"""store/ against moto, which checks every signature: its own S3, not ours.
Environment: STORE_DRIVER. Needs moto[server,s3] and boto3."""
import os
import random
import subprocess
import sys
import tempfile

import boto3
import requests
from moto.server import ThreadedMotoServer

DRIVER = os.environ["STORE_DRIVER"]
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
url = "http://%s:%d" % server.get_host_and_port()


def client(kind, key="testing", secret="testing"):
    return boto3.client(kind, endpoint_url=url, region_name="eu-west-1",
                        aws_access_key_id=key, aws_secret_access_key=secret)


def driver(*words, key, secret):
    p = subprocess.run([DRIVER, "s3://models/a dir/V3+é", *words],
                       capture_output=True, timeout=120, env={
                           "STORE_ENDPOINT": url, "STORE_REGION": "eu-west-1",
                           "STORE_KEY": key, "STORE_SECRET": secret,
                           "STORE_TRIES": "2"})
    return p.returncode, p.stdout, p.stderr.decode()


iam = client("iam")
iam.create_user(UserName="u")
iam.put_user_policy(UserName="u", PolicyName="p", PolicyDocument="""{"Version":
"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}
""")
made = iam.create_access_key(UserName="u")["AccessKey"]
key, secret = made["AccessKeyId"], made["SecretAccessKey"]
s3 = client("s3", key, secret)
s3.create_bucket(Bucket="models", CreateBucketConfiguration={
    "LocationConstraint": "eu-west-1"})
requests.post(url + "/moto-api/reset-auth", data="0", timeout=10)

good, bad = {"key": key, "secret": secret}, {"key": key, "secret": "wrong"}
names = ["config.json", "with space & + sign.json", "ü%20.json",
         "model-00001-of-00002.safetensors"]
with tempfile.TemporaryDirectory() as tmp:
    for i, name in enumerate(names):
        data = random.Random(i).randbytes((40 << 20) + 7 if i == 3 else 1000)
        path = os.path.join(tmp, "x")
        with open(path, "wb") as f:
            f.write(data)
        code, _, err = driver("put", name, path, **good)
        assert code == 0, err
        got = s3.get_object(Bucket="models", Key="a dir/V3+é/" + name)
        assert got["Body"].read() == data, name
        code, out, err = driver("read", name, "3", "900", **good)
        assert (code, out) == (0, data[3:903]), err
    code, out, err = driver("list", **good)
    assert code == 0 and all(n in out.decode() for n in names), (out, err)
    for words in (("list",), ("put", "y", path)):
        code, _, err = driver(*words, **bad)
        assert code == 3 and "access denied" in err, (words, code, err)
server.stop()
print("ok: moto takes our signatures and refuses wrong ones")
sys.exit(0)
