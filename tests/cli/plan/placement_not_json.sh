# SPDX-License-Identifier: Apache-2.0
echo "physical: [1, 2" >p.json
moe-convert plan fx/mixtral --ep 2 --placement p.json
