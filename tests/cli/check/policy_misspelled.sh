# SPDX-License-Identifier: Apache-2.0
echo '{"schema": "moec.policy/1", "severity": {"MOE-P99": "off"}}' >p.json
moe-convert check fx/mixtral --ep 2 --policy p.json --quiet
