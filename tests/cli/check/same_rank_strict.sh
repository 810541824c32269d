# SPDX-License-Identifier: Apache-2.0
# Both replicas of an expert on one rank: a warning, with --strict a finding.
moe-convert check fx/mixtral --ep 1 --redundant 2 --quiet || exit 9
moe-convert check fx/mixtral --ep 1 --redundant 2 --quiet --strict
