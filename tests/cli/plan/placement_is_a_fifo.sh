# SPDX-License-Identifier: Apache-2.0
mkfifo p.json
moe-convert plan fx/mixtral --ep 2 --placement p.json
