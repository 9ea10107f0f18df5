"""The looks of the HTML report: its style sheet and its script, both inside the page so that it works anywhere.

Type is the reader's own system font. One column with a list of contents on the left, which becomes a strip below the
header on narrow screens. Wide tables and figures scroll inside their own frame, never the page.
"""

STYLE = """
:root{color-scheme:light dark;
--paper:#f6f7f9;--card:#ffffff;--ink:#17202b;--muted:#5b6876;--line:#dde2e8;--soft:#eef1f5;
--accent:#0b5fad;--bar:#0b6fc4;--band:#a9cdf0;
--oracle:#8a4b00;--oracle-soft:#fff3df;--oracle-line:#e8a33d;--oracle-band:#f3cf95;
--quoted:#5a3d8c;--quoted-soft:#f4effb;--warn:#9b1c1c;--warn-soft:#fdecec;--shade:0 1px 2px rgb(15 25 40/.06)}
@media (prefers-color-scheme:dark){:root:not([data-theme=light]){
--paper:#10151b;--card:#171e26;--ink:#e6ebf1;--muted:#9aa7b5;--line:#2c3642;--soft:#1f2832;
--accent:#6db6ff;--bar:#6db6ff;--band:#2b5682;
--oracle:#ffc56b;--oracle-soft:#2d2415;--oracle-line:#b97a1c;--oracle-band:#6b4a17;
--quoted:#c9b2f5;--quoted-soft:#251f33;--warn:#ff9a9a;--warn-soft:#361d1f;--shade:none}}
:root[data-theme=dark]{color-scheme:dark;
--paper:#10151b;--card:#171e26;--ink:#e6ebf1;--muted:#9aa7b5;--line:#2c3642;--soft:#1f2832;
--accent:#6db6ff;--bar:#6db6ff;--band:#2b5682;
--oracle:#ffc56b;--oracle-soft:#2d2415;--oracle-line:#b97a1c;--oracle-band:#6b4a17;
--quoted:#c9b2f5;--quoted-soft:#251f33;--warn:#ff9a9a;--warn-soft:#361d1f;--shade:none}
:root[data-theme=light]{color-scheme:light}
*{box-sizing:border-box}
html{scroll-behavior:smooth;scroll-padding-top:4.5rem;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
a{color:var(--accent)}
code,pre{font:.86em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
code{background:var(--soft);padding:.1em .35em;border-radius:4px;overflow-wrap:anywhere}
header{position:sticky;top:0;z-index:20;background:var(--card);border-bottom:1px solid var(--line)}
.head{max-width:1560px;margin:auto;padding:.6rem 1.25rem;display:flex;gap:.3rem 1rem;align-items:center}
.name{min-width:0;flex:1 1 auto}
.name b{display:block;font-size:1.02rem;line-height:1.25;letter-spacing:-.01em;
white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.name span{display:block;color:var(--muted);font-size:.8rem;line-height:1.3;
white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.facts{display:flex;gap:.4rem;list-style:none;margin:0;padding:0;flex:0 0 auto}
.facts li{background:var(--soft);border-radius:99px;padding:.15rem .65rem;font-size:.8rem;white-space:nowrap}
.theme{flex:none;border:1px solid var(--line);background:none;color:inherit;border-radius:8px;font:inherit;
font-size:.85rem;padding:.25rem .55rem;cursor:pointer}
.page{max-width:1560px;margin:auto;display:grid;grid-template-columns:13.5rem minmax(0,1fr);gap:2.25rem;
padding:1.75rem 1.25rem 4rem}
nav{position:sticky;top:4.75rem;align-self:start;max-height:calc(100vh - 6rem);overflow:auto;font-size:.9rem}
nav p{margin:0 0 .4rem .75rem;color:var(--muted);font-size:.72rem;font-weight:600;letter-spacing:.08em;
text-transform:uppercase}
nav ol{list-style:none;margin:0;padding:0}
nav a{display:block;padding:.3rem .75rem;border-left:2px solid var(--line);color:var(--muted);text-decoration:none}
nav a:hover{color:var(--ink)}
nav a.here{color:var(--accent);border-color:var(--accent);font-weight:600}
main{min-width:0}
h1{font-size:clamp(1.55rem,1.1rem + 1.6vw,2.2rem);line-height:1.15;letter-spacing:-.022em;margin:0 0 .35rem}
.lead{color:var(--muted);font-size:1.05rem;margin:0 0 1.6rem;max-width:68ch}
section{margin:0 0 3.25rem}
h2{font-size:1.4rem;letter-spacing:-.014em;line-height:1.2;margin:0 0 .8rem;padding-top:.9rem;
border-top:1px solid var(--line)}
section:first-of-type h2{border-top:0;padding-top:0}
h3{font-size:1.02rem;letter-spacing:-.005em;margin:1.6rem 0 .5rem}
p{max-width:74ch;margin:.5rem 0 .9rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,15.5rem),1fr));gap:.9rem;margin:0 0 1.3rem}
.tile{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:.9rem 1.05rem;
box-shadow:var(--shade)}
.tile .label{font-size:.83rem;color:var(--muted);display:flex;flex-wrap:wrap;gap:.4rem;align-items:center}
.tile .value{font-size:1.9rem;font-weight:650;letter-spacing:-.025em;line-height:1.2;margin:.15rem 0;
font-variant-numeric:tabular-nums}
.tile .value small{font-size:.86rem;font-weight:400;letter-spacing:0;color:var(--muted)}
.tile svg{width:100%;height:auto;display:block;margin:.1rem 0 .45rem}
.tile .detail{font-size:.83rem;color:var(--muted)}
.tile.oracle{background:var(--oracle-soft);border-color:var(--oracle-line);border-style:dashed}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;box-shadow:var(--shade);margin:0 0 1.4rem;
overflow:hidden}
.bar{display:flex;flex-wrap:wrap;gap:.3rem 1rem;align-items:center;padding:.55rem .9rem;
border-bottom:1px solid var(--line)}
.bar p{flex:1 1 18rem;font-size:.86rem;color:var(--muted);margin:0;max-width:none}
.bar input{flex:0 1 12rem;min-width:0;font:inherit;font-size:.86rem;padding:.22rem .6rem;border:1px solid var(--line);
border-radius:8px;background:var(--paper);color:inherit}
.scroll{overflow:auto;max-height:min(78vh,56rem);overscroll-behavior-x:contain}
.scroll:focus-visible{outline:2px solid var(--accent);outline-offset:-2px}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:.42rem .6rem;text-align:left;vertical-align:middle;border-bottom:1px solid var(--line);white-space:nowrap}
tbody tr:last-child>*{border-bottom:0}
thead th{position:sticky;top:0;z-index:3;background:var(--soft);font-weight:600;font-size:.8rem;
color:var(--muted);padding:0}
thead button{all:unset;box-sizing:border-box;display:block;width:100%;padding:.5rem .6rem;cursor:pointer}
thead button:focus-visible{outline:2px solid var(--accent);outline-offset:-2px}
thead button:hover{color:var(--ink)}
thead button::after{content:"\\2195";opacity:.35;margin-left:.35em;font-size:.85em}
thead [aria-sort=ascending] button::after{content:"\\2191";opacity:1}
thead [aria-sort=descending] button::after{content:"\\2193";opacity:1}
.right{text-align:right}
tbody th{position:sticky;left:0;z-index:2;background:var(--card);font-weight:550;min-width:7rem}
tbody th.long{white-space:normal;min-width:14rem;max-width:22rem}
thead th:first-child{left:0;z-index:4}
tbody tr:hover>*{background:var(--soft)}
td.long{white-space:normal;min-width:16rem;max-width:34rem;overflow-wrap:break-word}
tr.oracle>*{background:var(--oracle-soft)}
tr.oracle>:first-child{box-shadow:inset 3px 0 var(--oracle-line)}
td.quoted,th.quoted{background:var(--quoted-soft)!important;color:var(--quoted);font-style:italic}
th.quoted{font-style:normal}
.est{display:flex;align-items:center;gap:.45rem}
.est svg{flex:none;width:72px;height:14px}
.est .num{min-width:2.6em;text-align:right;font-weight:600}
.est .ci{color:var(--muted);font-size:.84em}
svg.ci-bar .track{stroke:var(--line);stroke-width:1}
svg.ci-bar .band{fill:var(--band)}
svg.ci-bar .dot{fill:var(--bar)}
.oracle svg.ci-bar .band{fill:var(--oracle-band)}
.oracle svg.ci-bar .dot{fill:var(--oracle)}
.none{color:var(--muted)}
@media (min-width:700px){th wbr,td:not(.long) wbr{display:none}}
.mark{display:inline-block;font-size:.68rem;font-weight:650;line-height:1.35;letter-spacing:.045em;padding:.05rem .4rem;
border-radius:5px;border:1px solid currentColor;color:var(--muted);white-space:nowrap;vertical-align:.08em;
font-style:normal;margin-left:.35rem}
.mark.oracle{color:var(--oracle);background:var(--oracle-soft);border-color:var(--oracle-line)}
.mark.published{color:var(--quoted);background:var(--quoted-soft)}
.label .mark,.legend .mark{margin-left:0}
.notice{border-left:4px solid var(--accent);background:var(--card);border-radius:0 10px 10px 0;padding:.65rem 1rem;
margin:0 0 1rem;box-shadow:var(--shade);overflow-wrap:anywhere}
.notice.warning{border-color:var(--warn);background:var(--warn-soft)}
.notice p{margin:0}
figure{margin:0}
.plot{padding:1rem 1.1rem}
.plot h3,.gallery h3{margin-top:0}
.plot .wide{overflow-x:auto}
.plot svg text{font-family:inherit!important}
.plot svg{display:block;width:100%;height:auto;margin:auto}
figcaption{color:var(--muted);font-size:.86rem;max-width:80ch}
.plot figcaption{margin-top:.6rem}
.galleries{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,36rem),1fr));gap:0 1.2rem}
.gallery{padding:1rem 1.1rem}
.shots{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:1rem}
.shots img{display:block;width:100%;height:auto;max-height:20rem;object-fit:contain;background:#0b0e12;
border-radius:8px}
.shots b{display:block;margin-top:.45rem;font-size:.9rem}
.shots figcaption{overflow-wrap:anywhere}
.legend{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;font-size:.86rem;color:var(--muted);margin:0 0 1rem;padding:0;
list-style:none}
.legend i{display:inline-block;width:1.3em;height:.8em;border-radius:3px;margin-right:.4em;vertical-align:-.05em;
background:#20262e;border:3px solid}
dl{display:grid;grid-template-columns:minmax(8rem,max-content) minmax(0,1fr);gap:.25rem 1.2rem;margin:0;
padding:.8rem 1.1rem;font-size:.88rem}
dt{color:var(--muted)}
dd{margin:0;overflow-wrap:anywhere}
.card.facts-card>h3{margin:0;padding:.7rem 1.1rem 0}
footer{color:var(--muted);font-size:.82rem;border-top:1px solid var(--line);padding-top:1rem}
@media (max-width:1180px){.facts li:nth-child(n+4){display:none}}
@media (max-width:960px){
.page{grid-template-columns:minmax(0,1fr);gap:0;padding-top:0}
nav{top:auto;position:static;margin:0 -1.25rem 1.5rem;padding:.6rem 1.25rem;border-bottom:1px solid var(--line);
overflow-x:auto;max-height:none}
nav p{display:none}
nav ol{display:flex;gap:.35rem}
nav a{white-space:nowrap;border:1px solid var(--line);border-radius:99px;padding:.2rem .7rem;background:var(--card)}
.facts{display:none}}
@media (max-width:560px){
body{font-size:15px}
.head,.page{padding-left:.85rem;padding-right:.85rem}
nav{margin:0 -.85rem 1.2rem;padding:.55rem .85rem}
th,td{padding:.4rem .55rem}
thead button{padding:.45rem .55rem}
tbody th,tbody th.long{white-space:normal;min-width:7rem;max-width:9rem;overflow-wrap:break-word;
hyphens:auto}
td.words{white-space:normal;min-width:6.5rem}
.est svg{order:1}
.bar{padding:.55rem .7rem}
.bar input{flex-basis:100%}
.shots{grid-template-columns:repeat(2,minmax(0,1fr));gap:.7rem}
.shots figure:first-child:nth-last-child(3){grid-column:span 2}
dl{grid-template-columns:minmax(0,1fr);gap:0}
dd{margin-bottom:.5rem}}
@media print{
:root,:root:not([data-theme=light]){color-scheme:light;--paper:#fff;--card:#fff;--ink:#000;--muted:#444;--line:#bbb;
--soft:#eee;--accent:#000;--bar:#0b6fc4;--band:#a9cdf0;--oracle:#8a4b00;--oracle-soft:#fff3df;--oracle-line:#e8a33d;
--oracle-band:#f3cf95;--quoted:#5a3d8c;--quoted-soft:#f4effb;--warn:#9b1c1c;--warn-soft:#fdecec;--shade:none}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
body{font-size:10pt}
header,thead th,tbody th{position:static}
header .theme,nav,.bar input,thead button::after{display:none}
.page{display:block;padding:0}
.scroll{max-height:none;overflow:visible}
table{font-size:7.6pt}
th,td{padding:.2rem .3rem;white-space:normal}
thead button{padding:.2rem .3rem}
.est svg{width:46px}
tr,figure,.tile,.notice{break-inside:avoid}
h2,h3{break-after:avoid}
.plot svg{min-width:0!important}}
"""

SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead button").forEach((button, column) => {
    button.addEventListener("click", () => {
      const head = button.parentElement;
      const first = head.classList.contains("right") || head.dataset.kind === "interval" ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      table.querySelectorAll("thead th").forEach((th) => th.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const key = (row) => row.cells[column].dataset.v;
      const numeric = [...body.rows].every((row) => key(row) === "" || !Number.isNaN(Number(key(row))));
      const compare = (a, b) => {
        if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
        return sign * (numeric ? Number(key(a)) - Number(key(b)) : key(a).localeCompare(key(b)));
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
  const filter = table.closest(".card").querySelector("input");
  if (filter) {
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(" ").filter(Boolean);
      for (const row of body.rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
  }
}
const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
const mark = () => {
  let here = "";
  for (const section of document.querySelectorAll("main section"))
    if (section.getBoundingClientRect().top < innerHeight / 3) here = section.id;
  links.forEach((a, id) => a.classList.toggle("here", id === here));
};
addEventListener("scroll", mark, { passive: true });
mark();
const dark = matchMedia("(prefers-color-scheme: dark)");
document.querySelector(".theme").addEventListener("click", () => {
  const root = document.documentElement;
  const now = root.dataset.theme || (dark.matches ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
});
"""
