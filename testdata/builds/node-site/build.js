// Renders src/*.md to dist/*.html with the page's first heading as its title.
const fs = require('node:fs');
const path = require('node:path');
const { marked } = require('marked');

const source = path.join(__dirname, 'src');
const target = path.join(__dirname, 'dist');

fs.rmSync(target, { recursive: true, force: true });
fs.mkdirSync(target, { recursive: true });
for (const name of fs.readdirSync(source).filter((n) => n.endsWith('.md')).sort()) {
  const text = fs.readFileSync(path.join(source, name), 'utf8');
  const title = /^# (.*)$/m.exec(text)?.[1] ?? name;
  const page = `<!doctype html>\n<meta charset="utf-8">\n<title>${title}</title>\n${marked.parse(text)}`;
  fs.writeFileSync(path.join(target, name.replace(/\.md$/, '.html')), page);
  console.log(`built ${name}`);
}
