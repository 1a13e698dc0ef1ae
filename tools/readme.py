"""Write README.md from index.ipynb without Quarto: prose, code and saved outputs as GitHub shows them.

`python tools/readme.py` writes it, `python tools/readme.py --check` fails if it is not what the notebook says."""
import re,sys
from base64 import b64decode
from pathlib import Path
from fastcore.nbio import read_nb
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup

root = Path(__file__).resolve().parent.parent
cfg = get_config(root)
docs = f'{cfg.doc_host}{cfg.doc_baseurl}'.rstrip('/')
note = '<!-- Written by tools/readme.py from index.ipynb: edit that, not this -->'

def joined(x): return x if isinstance(x, str) else ''.join(x)

def notebook_link(m):
    "A link to a notebook of the repository as a link to its page of the docs"
    page = re.sub(r'^\d+[a-z]?_', '', Path(m[2]).stem)
    folder = Path(m[2]).parent.as_posix().removeprefix('nbs').strip('./')
    return f'[{m[1]}]({docs}/{folder+"/" if folder else ""}{page}.html)'

def prose(s): return re.sub(r'(?<!!)\[([^\]]+)\]\(([^)\s]+\.ipynb)\)', notebook_link, NbdevLookup().linkify(s))

def shown(o, name, alt, images):
    "One saved output as markdown; pictures go to `images`"
    d = o.get('data', {})
    if 'image/png' in d:
        images[f'{name}.png'] = b64decode(joined(d['image/png']))
        return f'![{alt}](index_files/{name}.png)'
    if 'text/markdown' in d: return joined(d['text/markdown'])
    text = joined(o.get('text') or d.get('text/plain', '')).rstrip()
    return '\n'.join(f'    {l}'.rstrip() for l in text.splitlines())

def readme():
    "`(text, images)` of the README"
    out,images = [],{}
    for i,c in enumerate(read_nb(root/'index.ipynb').cells):
        src,flags = c.source.strip(),re.findall(r'^#\|\s*(.+)$', c.source, re.M)
        if not src or any(f.startswith(('hide','default_exp')) for f in flags): continue
        if c.cell_type=='markdown': out.append(prose(src) if i else f'{src}\n\n{note}')
        else:
            code = '\n'.join(l for l in src.splitlines() if not l.startswith('#|')).strip()
            if code and 'echo: false' not in flags: out.append(f'``` python\n{code}\n```')
            alt = next((f.removeprefix('fig-alt:').strip(' "') for f in flags if f.startswith('fig-alt:')), 'Output of the code above')
            out += [s for j,o in enumerate(c.get('outputs', [])) if (s := shown(o, f'cell-{i}-{j}', alt, images))]
    return '\n\n'.join(out)+'\n', images

if __name__=='__main__':
    text,images = readme()
    files = {root/'README.md':text.encode()} | {root/'index_files'/k:v for k,v in images.items()}
    lost = [p for p in re.findall(r'!\[[^\]]*\]\(([^)\s]+)\)', text) if '://' not in p and root/p not in files and not (root/p).exists()]
    if lost: sys.exit(f'{", ".join(lost)}: no such picture')
    if '--check' in sys.argv:
        stale = [p.name for p,data in files.items() if not p.exists() or p.read_bytes()!=data]
        sys.exit(f'{", ".join(stale)}: not what index.ipynb says; run python tools/readme.py' if stale else 0)
    for p,data in files.items():
        p.parent.mkdir(exist_ok=True)
        p.write_bytes(data)
