"""The style sheets of the reports; light and dark follow the reader's system."""

STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--fg:#1d2129;--muted:#68707d;--line:#e3e5e8;--grid:#eceef0;
--s0:#2f6fde;--s1:#d9822b;--s2:#2a9d72;--s3:#a04fb5;--before:#b3bccb;--after:#2f6fde;--best:#e8f0fd;
--warn:#fff4dd;--warnline:#dfa52c;--launch:#a7adb8;--load:#d9b04c;--compute:#2f6fde;--decode:#2a9d72;--evaluate:#a04fb5}
@media (prefers-color-scheme:dark){:root{--bg:#14161a;--card:#1b1e24;--fg:#e4e7ec;--muted:#98a1af;--line:#30353e;
--grid:#272b33;--s0:#79a8ff;--s1:#f0a75a;--s2:#5cc79d;--s3:#cf8ee0;--before:#5a6474;--after:#79a8ff;--best:#22324f;
--warn:#3a2f16;--warnline:#c4922e;--launch:#6f7785;--load:#c9a34a;--compute:#5f93f5;--decode:#49b58b;--evaluate:#b978ca}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:40px 28px 80px}
h1{font-size:28px;line-height:1.2;margin:0 0 14px;letter-spacing:-.015em}
h2{font-size:19px;margin:0 0 12px;letter-spacing:-.01em}
h3{font-size:15px;margin:22px 0 8px}
section{margin-top:44px;border-top:1px solid var(--line);padding-top:26px}
pre{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:10px 14px;overflow-x:auto;
margin:0 0 18px}
code{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
dl{display:flex;flex-wrap:wrap;gap:10px 34px;margin:0}
dt{font-size:12px;color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}
.note{color:var(--muted);font-size:13.5px;margin:8px 0;max-width:85ch}
.muted{color:var(--muted)}
.warning{margin-top:28px;background:var(--warn);border-left:4px solid var(--warnline);border-radius:4px;
padding:14px 20px}
.warning h2{font-size:15px;margin:0 0 6px}.warning ul{margin:0;padding-left:18px}
.warning li{overflow-wrap:anywhere}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:7px 12px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}
thead th{color:var(--muted);font-weight:500;font-size:12.5px;border-bottom:1px solid var(--muted)}
tbody th{font-weight:500}
tbody tr:last-child>*{border-bottom:0}
table.text{width:auto;min-width:50%}
table.text td,table.text thead th{text-align:left}
table.text td{white-space:normal;overflow-wrap:anywhere}
.best{background:var(--best);border-radius:4px;padding:2px 6px;margin:-2px -6px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:14px;margin:0 0 26px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:14px 16px}
.tile b{display:block;font-size:21px;font-weight:600;font-variant-numeric:tabular-nums;letter-spacing:-.01em;
white-space:nowrap}
.tile b i{font-style:normal;color:var(--muted);font-weight:400}
.tile span{font-size:12.5px;color:var(--muted);display:block}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:22px}
.wide{display:grid;grid-template-columns:repeat(auto-fill,minmax(440px,1fr));gap:26px}
figure{margin:0;min-width:0}
figure+.scroll{margin-top:18px}
figcaption{font-size:13.5px;font-weight:600;display:flex;flex-wrap:wrap;gap:2px 14px;justify-content:space-between;
margin-bottom:4px}
.legend{font-weight:400;color:var(--muted);font-size:12.5px;display:flex;flex-wrap:wrap;gap:0 12px}
.swatch{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:5px;vertical-align:-1px}
svg{display:block;width:100%;height:auto;overflow:visible}
svg .tick{font-size:10.5px;fill:var(--muted)}svg .name{font-size:12px;fill:var(--fg)}
.grid{stroke:var(--grid)}.axis{stroke:var(--muted);stroke-opacity:.6}
.separator{stroke:var(--line)}.reference{stroke:var(--muted);stroke-dasharray:4 4}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}
.error{stroke-width:1.2;stroke-opacity:.75}
.line.s0,.error.s0{stroke:var(--s0)}.line.s1,.error.s1{stroke:var(--s1)}
.line.s2,.error.s2{stroke:var(--s2)}.line.s3,.error.s3{stroke:var(--s3)}
.dot.s0{fill:var(--s0)}.dot.s1{fill:var(--s1)}.dot.s2{fill:var(--s2)}.dot.s3{fill:var(--s3)}
.swatch.s0{background:var(--s0)}.swatch.s1{background:var(--s1)}
.swatch.s2{background:var(--s2)}.swatch.s3{background:var(--s3)}
rect.before{fill:var(--before)}rect.after{fill:var(--after)}
.swatch.before{background:var(--before)}.swatch.after{background:var(--after)}
rect.launch{fill:var(--launch)}rect.load{fill:var(--load)}rect.compute{fill:var(--compute)}
rect.decode{fill:var(--decode)}rect.evaluate{fill:var(--evaluate)}rect.other{fill:var(--muted)}
.swatch.launch{background:var(--launch)}.swatch.load{background:var(--load)}.swatch.compute{background:var(--compute)}
.swatch.decode{background:var(--decode)}.swatch.evaluate{background:var(--evaluate)}.swatch.other{background:var(--muted)}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(400px,1fr));gap:20px 40px}
ol.items{list-style:none;margin:0;padding:0}
ol.items li{display:grid;grid-template-columns:1fr auto;gap:0 12px;padding:4px 0;font-size:14px}
ol.items li>span:first-child{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
ol.items .count{color:var(--muted);font-variant-numeric:tabular-nums}
ol.items .track{grid-column:1/-1;height:5px;background:var(--grid);border-radius:3px;margin-top:2px}
ol.items .track i{display:block;height:100%;border-radius:3px;background:var(--after)}
ol.items.before .track i{background:var(--before)}
details{margin:10px 0}summary{cursor:pointer;font-weight:500;padding:6px 0}
@media (max-width:520px){main{padding:24px 14px 60px}.wide,.plots,.pair{grid-template-columns:1fr}}
@media print{section{break-inside:avoid}}
"""

SWEEP_STYLE = (
    STYLE
    + """
.line.rest{stroke:var(--muted);stroke-opacity:.45}.dot.rest{fill:var(--muted)}.swatch.rest{background:var(--muted)}
.line.d1{stroke-dasharray:7 3}.line.d2{stroke-dasharray:2 3}.line.d3{stroke-dasharray:9 3 2 3}
.line.thin{stroke-width:1;stroke-opacity:.7}.line.bold{stroke-width:3.4}.line.key{stroke:var(--fg)}
.dot.s0{stroke:var(--s0)}.dot.s1{stroke:var(--s1)}.dot.s2{stroke:var(--s2)}.dot.s3{stroke:var(--s3)}
.dot.rest{stroke:var(--muted)}.dot.hollow{fill:var(--bg);stroke-width:1.5}
.dot.ring{fill:none;stroke:var(--fg);stroke-width:1.6}
.swatch{border-radius:6px}
.swatch.hollow{background:none;border:1.5px solid var(--muted)}
.swatch.ring{background:none;border:1.6px solid var(--fg)}
.stroke{display:inline-block;width:30px;height:8px;margin-right:5px;vertical-align:1px}
p.legend{margin:0 0 14px}
svg .label{fill:var(--fg)}
.cell{fill:var(--s0)}.cell.empty{fill:none;stroke:var(--line);stroke-dasharray:4 3}
rect.chosen{fill:none;stroke:var(--fg);stroke-width:2}
svg .value{font-size:12px;fill:var(--fg);font-variant-numeric:tabular-nums}svg .mark{font-size:10.5px;fill:var(--muted)}
.scale{display:flex;flex-wrap:wrap;gap:0 14px;justify-content:space-between;margin:2px 0 0;color:var(--muted);
font-size:12px}
.ramp{display:inline-block;width:60px;height:9px;margin:0 6px;border-radius:2px;
background:linear-gradient(90deg,transparent,var(--s0));opacity:.6}
.floor{min-width:640px}
.state{color:var(--muted)}.state.failed{color:var(--s1);font-weight:600}
tr.chosen>*{background:var(--best)}
ol.commands{padding:0;margin:0;list-style:none}ol.commands li{margin:0 0 14px}ol.commands b{font-weight:500}
ol.commands pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:4px 0 0}
.maps{row-gap:30px}main{max-width:1240px}
table.dense{font-size:13px}table.dense th,table.dense td{padding:6px 6px}
.plots+.plots{margin-top:26px}.narrow{max-width:920px}
"""
)
"""The same with what only the page of a sweep shows."""

COMPARE_STYLE = (
    SWEEP_STYLE
    + """
.second{text-decoration:underline;text-underline-offset:3px}
.spread{display:block;font-size:11.5px;color:var(--muted)}
.results td,.results tbody th{vertical-align:top}
sup{font-size:9.5px;line-height:0;color:var(--muted)}
table.wrap td{vertical-align:top;font-size:13px}table.wrap tbody th{vertical-align:top}
table.wrap td:last-child{min-width:300px}
main{max-width:1320px}
"""
)
"""The same with what only the page of a comparison shows."""
