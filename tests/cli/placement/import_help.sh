# SPDX-License-Identifier: Apache-2.0
moe-convert placement import --help && moe-convert placement export --help
