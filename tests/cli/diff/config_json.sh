# SPDX-License-Identifier: Apache-2.0
# Another router is another model, with the same tensors.
cp -r fx/mixtral one
cp -r fx/mixtral two
chmod -R u+w two
sed 's/"num_experts_per_tok": 2/"num_experts_per_tok": 1/' one/config.json >two/config.json
moe-convert diff one two
echo "exit $?"
rm two/fixture.json
moe-convert convert two out --ep 2 --quiet
moe-convert diff one out
echo "exit $?"
