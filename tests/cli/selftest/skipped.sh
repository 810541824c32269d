# SPDX-License-Identifier: Apache-2.0
# What cannot be run is said, and counts with --strict.
mkdir v
sed '/"id":"rt-01"/s/"plain"/"quantum"/' fx/../vectors/routing.json >v/routing.json
cp fx/../vectors/routing.safetensors v
moe-convert selftest --vectors v --cpu scalar --quiet
moe-convert selftest --vectors v --cpu scalar --quiet --strict
