# SPDX-License-Identifier: Apache-2.0
printf '{"schema": "moec.family/1", "id": 3}\n' >f.json
moe-convert plan fx/mixtral --ep 2 --family f.json
