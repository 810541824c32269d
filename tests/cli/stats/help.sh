# SPDX-License-Identifier: Apache-2.0
exec moe-convert stats --help
