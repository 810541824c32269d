# SPDX-License-Identifier: Apache-2.0
# A limit that is broken; the warning that is made an error is not there.
cat >p.json <<END
{"schema": "moec.policy/1", "max_rank_bytes": 100000,
 "severity": {"replica-same-rank": "error"}}
END
moe-convert check fx/mixtral --ep 2 --redundant 2 --policy p.json --quiet
