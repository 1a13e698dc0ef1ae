"""The docs as plain pages, without Quarto: what nbdev hands to Quarto, converted by nbconvert.

`python tools/docs.py` writes a page for each notebook of nbs/sidebar.yml into `_docs/`; open its `index.html`.
Pages look simpler than those of the web site and have no search; formulas are drawn where MathJax can be loaded."""
import html,os,re,shutil
from functools import partial
from pathlib import Path
import nbformat,yaml
from nbconvert import HTMLExporter
from nbdev.process import read_nb
from nbdev.serve import proc_nbs
from readme import cfg,docs,root

nbs = root/'nbs'
STYLE = '''body {display:flex; gap:2rem; margin:0; font:16px/1.5 system-ui,sans-serif; color:#222; background:#fff}
nav {flex:0 0 15rem; height:100vh; overflow:auto; position:sticky; top:0; padding:1rem; font-size:.85rem; background:#f6f6f6; box-sizing:border-box}
nav ul {list-style:none; margin:0; padding-left:.7rem} nav b {display:block; margin-top:.6rem} nav a {color:inherit; text-decoration:none}
nav a[aria-current] {font-weight:bold} main {flex:1; min-width:0; max-width:52rem; padding:1rem 0} img,svg {max-width:100%; height:auto}
pre {overflow:auto; padding:.6rem; background:#f6f6f6; font-size:.85rem} .output pre {background:none} table {border-collapse:collapse}
td,th {padding:.2rem .6rem; text-align:left} blockquote {margin:0; color:#555; font-size:1.1rem} a.anchor-link {display:none}
@media (max-width:50rem) {body {display:block} nav {position:static; height:auto; max-height:12rem} main {padding:1rem}}'''

def page_of(path):
    "Where the page of a notebook lies, as nbdev places it: without the number"
    p = Path(path)
    return (p.parent/(re.sub(r'^\d+[a-z]?_', '', p.stem)+'.html')).as_posix()

def notebooks(contents):
    "Paths of the sidebar, in order"
    for c in contents:
        if isinstance(c, str): yield c
        else: yield from [*([c['href']] if 'href' in c else []), *notebooks(c.get('contents', ()))]

def title(path):
    "The first heading of a notebook"
    first = next((c.source for c in read_nb(nbs/path).cells if c.cell_type=='markdown' and c.source.startswith('# ')), f'# {Path(path).stem}')
    return first.splitlines()[0][2:]

def menu(contents, titles, here):
    "The sidebar as seen from the page `here`"
    link = lambda p,name: f'<a href="{os.path.relpath(page_of(p), Path(here).parent)}"{" aria-current=page"*(page_of(p)==here)}>{html.escape(name)}</a>'
    rows = [f'<li>{link(c, titles[c])}' if isinstance(c, str) else
            f'<li><b>{link(c["href"], c["section"]) if "href" in c else html.escape(c["section"])}</b>{menu(c["contents"], titles, here)}' for c in contents]
    return f'<ul>{"".join(rows)}</ul>'

def shown(cell):
    "A cell as nbconvert wants it: what Quarto's directives say is done here"
    cell.metadata.clear() # nbdev leaves times in it that nbformat refuses
    said = dict(re.findall(r'^#\|\s*([\w-]+):\s*(.*?)\s*$', cell.source, re.M))
    cell.source = '' if cell.cell_type=='code' and said.get('echo')=='false' else re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M)
    if not cell.source: cell.metadata.transient = dict(remove_source=True)
    for o in cell.get('outputs', []):
        md = o.get('data', {}).get('text/markdown')
        if md: o['data']['text/markdown'] = re.sub(r'\{target=[^}]*\}', '', md)
        if said.get('output')=='asis' and 'text' in o: o.update(output_type='display_data', data={'text/markdown':''.join(o.pop('text'))}, metadata={})
    return cell

def linked(folder, here, m):
    "A link of a notebook in `folder` as one of a page in `here`: to a page that lies beside it, or to a file of the repository"
    at = os.path.normpath(folder/m[1].removeprefix('nbs/' if folder==Path('.') else ''))
    if at.endswith('.ipynb'): return f'href="{os.path.relpath(page_of(at), here)}{m[2] or ""}"'
    return f'href="{cfg.git_url}/blob/{cfg.branch}/{os.path.relpath((nbs/folder).resolve()/m[1], root) if folder!=Path(".") else m[1]}"'

def pictures(text, folder, out, here):
    "Files that a page draws are laid beside it"
    def put(m):
        to = (out/here).parent/Path(m[1]).name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder/m[1], to)
        return f'src="{to.name}"'
    return re.sub(r'src="(?![a-z]+:)([^"]+)"', put, text)

def main(out):
    "Write all pages; the folder they lie in"
    made,listed = proc_nbs(n_workers=1),yaml.safe_load((nbs/'sidebar.yml').read_text())['website']['sidebar']['contents']
    paths = list(dict.fromkeys(notebooks(listed)))
    titles = {p:title(p) for p in paths}
    convert = HTMLExporter(template_name='basic', exclude_input_prompt=True, exclude_output_prompt=True).from_notebook_node
    shutil.rmtree(out, ignore_errors=True)
    for p in paths:
        here,nb = page_of(p),nbformat.read(made/p, 4)
        front = next((yaml.safe_load(c.source.strip('-\n')) for c in nb.cells if c.cell_type=='raw' and c.source.startswith('---')), {})
        nb.cells = [shown(c) for c in nb.cells if c.cell_type!='raw']
        text = re.sub(r'href="(?![a-z]+:|#)([^"#]+)(#[^"]*)?"', partial(linked, Path(p).parent, Path(here).parent), convert(nb)[0])
        text = pictures(text, root if p=='index.ipynb' else (nbs/p).parent, out, here)
        text = text.replace(f'href="{docs}/', f'href="{os.path.relpath(".", Path(here).parent)}/')
        text = f'<h1>{html.escape(titles[p])}</h1><blockquote>{html.escape(front.get("description", ""))}</blockquote>{text}'
        page = (f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
                f'<title>{html.escape(titles[p])} - text2grad</title><style>{STYLE}</style><nav aria-label="Pages">{menu(listed, titles, here)}</nav>'
                f'<main>{text}</main><script async src="https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-chtml.js"></script></html>')
        (out/here).parent.mkdir(parents=True, exist_ok=True)
        (out/here).write_text(page)
    return out

if __name__=='__main__': print(main(root/'_docs')/'index.html')
