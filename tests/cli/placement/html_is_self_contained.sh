# SPDX-License-Identifier: Apache-2.0
# 61 layers of 288 slots with loads, below 2 MB, and nothing loaded from
# elsewhere. Names that would be markup are text in it.
[ -n "$PYTHON" ] || exit 77
moe-convert placement import --strategy round_robin --experts 288 --moe-layers 0-60 --ep 32 -q >p.json || exit 99
bad='</script><img src=x onerror=alert(1)>&'"$(printf '\033[31m\303\050')"'.json'
mv p.json "$(echo "$bad" | tr / _)"
bad=$(echo "$bad" | tr / _)
"$PYTHON" - <<'EOF' >"c<b>.json"
import json
print(json.dumps([[(i * 37 + e * 11) % 101 + 0.5 for e in range(288)] for i in range(61)]))
EOF
moe-convert placement show "$bad" --ep 32 --nodes 4 --shared 1 --logical-count "c<b>.json" --html page.html -q >/dev/null || exit 98
[ "$(wc -c <page.html)" -lt 2000000 ] || exit 97
"$PYTHON" - <<'EOF'
import html.parser, json, re
text = open("page.html", encoding="utf-8").read()
assert "Content-Security-Policy" in text and "default-src 'none'" in text
assert not re.search(r"(src|href|action)\s*=|url\(|@import|fetch\(|XMLHttp|innerHTML", text.split('id="data">')[0] + text.split("</script>", 1)[1])
class Page(html.parser.HTMLParser):
    tags, data, script = set(), "", None
    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.script = dict(attrs).get("id") if tag == "script" else None
    def handle_data(self, s):
        if self.script == "data":
            self.data += s
p = Page()
p.feed(text)
assert "img" not in p.tags and "b" not in p.tags, p.tags
d = json.loads(p.data)
assert "<img" in d["title"] and "\ufffd" in d["title"], d["title"]
assert d["countsName"] == "c<b>.json" and d["W"] == 32 and d["S"] == 1 and d["N"] == 4
assert len(d["p2l"]) == 61 and len(d["p2l"][0]) == 288 and len(d["loads"][60]) == 288
EOF
[ $? -eq 0 ] || exit 96
# An existing page stays.
moe-convert placement show "$bad" --ep 32 --html page.html -q 2>/dev/null
[ $? -eq 2 ]
