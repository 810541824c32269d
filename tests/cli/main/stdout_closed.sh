# SPDX-License-Identifier: Apache-2.0
# The descriptor is free, and the first file opened would take it.
moe-convert inspect fx/mixtral --quiet >&-
