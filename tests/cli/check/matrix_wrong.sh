# SPDX-License-Identifier: Apache-2.0
moe-convert check fx/mixtral --matrix 2,x:0
moe-convert check fx/mixtral --matrix 2:0:both
moe-convert check fx/mixtral --matrix 2:0 --placement p.json
moe-convert check fx/mixtral --matrix 0
