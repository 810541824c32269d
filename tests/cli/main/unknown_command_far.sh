# SPDX-License-Identifier: Apache-2.0
# Near to nothing: no guess.
moe-convert quantisation import x
