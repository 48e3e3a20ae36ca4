//! The rules of the house, read from the sources: a name is defined once, and imports
//! run one way, as the table in `src/engine/README.md` has it.

mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use source::Import;

/// The path of a module, without `crate`.
type Module = Vec<String>;

struct File {
    /// Under the crate's root.
    path: String,
    definitions: Vec<String>,
    imports: Vec<Import>,
}

struct Sources(BTreeMap<Module, File>);

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files with that ending in the folder and below.
fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let files = paths.flat_map(|path| match path.is_dir() {
        true => files_in(&path),
        false => vec![path],
    });
    files.collect()
}

fn module(parts: &[&str]) -> Module {
    parts.iter().map(|part| (*part).to_owned()).collect()
}

impl Sources {
    fn read() -> Self {
        let folder = root().join("src");
        let files = files_in(&folder).into_iter().filter_map(|path| {
            let name = path.strip_prefix(&folder).expect("within").to_str()?;
            let parts: Vec<&str> = name.strip_suffix(".rs")?.split('/').collect();
            let module = match &*parts {
                ["lib"] => module(&[]),
                [folder @ .., "mod"] => module(folder),
                parts => module(parts),
            };
            let tokens = source::tokens(&fs::read_to_string(&path).expect("a text"));
            let file = File {
                path: format!("src/{name}"),
                definitions: source::definitions(&tokens),
                imports: source::imports(&tokens),
            };
            Some((module, file))
        });
        Self(files.collect())
    }

    fn path(&self, module: &Module) -> &str {
        &self.0[module].path
    }

    /// The module that defines what the path names, or brings it in from another crate;
    /// `None` if the path leads out of the crate.
    fn resolve(&self, from: &Module, path: &[String]) -> Option<Module> {
        let mut module = match &*path[0] {
            "crate" => Module::new(),
            "super" => from[..from.len() - 1].to_vec(),
            "self" => from.clone(),
            name => self.child(from, name)?,
        };
        for (at, part) in path.iter().enumerate().skip(1) {
            if part == "*" {
                break;
            } else if part == "super" {
                module.pop();
            } else if let Some(child) = self.child(&module, part) {
                module = child;
            } else {
                let file = &self.0[&module];
                let brought = |import: &&Import| import.name.as_ref() == Some(part);
                return match file.imports.iter().find(brought) {
                    Some(import) => {
                        let path = [&import.path, &path[at + 1..]].concat();
                        self.resolve(&module, &path)
                    }
                    None => Some(module),
                };
            }
        }
        Some(module)
    }

    fn child(&self, module: &Module, name: &str) -> Option<Module> {
        let child = [&**module, &[name.to_owned()]].concat();
        self.0.contains_key(&child).then_some(child)
    }

    /// What each file imports from other files of the crate: the path as it stands there,
    /// and the module it leads to. A file that passes on names of its own modules does not
    /// import them.
    fn imports(&self) -> impl Iterator<Item = (&Module, String, Module)> {
        self.0.iter().flat_map(move |(from, file)| {
            file.imports.iter().filter_map(move |import| {
                let to = self.resolve(from, &import.path)?;
                let passes_on = import.public && to.starts_with(from);
                (to != *from && !passes_on).then(|| (from, import.path.join("::"), to))
            })
        })
    }
}

/// Modules that declare others, and pass names on.
fn is_declaring(module: &Module) -> bool {
    ["", "engine", "wrappers"].contains(&&*module.join("/"))
}

/// The layers, first those that import nothing.
struct Layers {
    files: BTreeMap<Module, usize>,
    folders: BTreeMap<Module, usize>,
}

impl Layers {
    /// Reads the table of `src/engine/README.md`. A name there is that of a file, or with
    /// `/*` that of a folder, in `src/engine` or else in `src`.
    fn read(sources: &Sources) -> Self {
        let page = fs::read_to_string(root().join("src/engine/README.md")).expect("the page");
        let table = page
            .split("\n# ")
            .find(|part| part.starts_with("What imports what"));
        let rows = table
            .expect("the table")
            .lines()
            .filter(|line| line.starts_with('|'));
        let (mut files, mut folders) = (BTreeMap::new(), BTreeMap::new());
        for (layer, row) in rows.skip(2).enumerate() {
            for name in row.split('`').skip(1).step_by(2) {
                let parts: Vec<&str> = name.trim_end_matches("/*").split('/').collect();
                let inner = module(&[&["engine"], &*parts].concat());
                let exists = sources.0.keys().any(|module| module.starts_with(&inner));
                let named = if exists { inner } else { module(&parts) };
                match name.ends_with("/*") {
                    true => folders.insert(named, layer),
                    false => files.insert(named, layer),
                };
            }
        }
        Self { files, folders }
    }

    /// A file that is not named belongs to the innermost folder that is, or to its parent.
    fn of(&self, module: &Module) -> Option<usize> {
        if let Some(layer) = self.files.get(module) {
            return Some(*layer);
        }
        let parents = (0..module.len()).rev().map(|len| module[..len].to_vec());
        let mut named = parents.filter_map(|parent| {
            let folder = self.folders.get(&parent);
            folder.or_else(|| self.files.get(&parent)).copied()
        });
        named.next()
    }
}

#[test]
fn every_name_is_defined_once() {
    let sources = Sources::read();
    let mut definitions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for file in sources.0.values() {
        for name in &file.definitions {
            definitions.entry(name).or_default().push(&file.path);
        }
    }
    assert!(definitions.len() > 100, "they are not all read");
    let twice = definitions.iter().filter(|(_, paths)| paths.len() > 1);
    let twice: Vec<_> = twice
        .map(|(name, paths)| format!("`{name}` in {}", paths.join(", ")))
        .collect();
    assert!(twice.is_empty(), "defined twice:\n{}", twice.join("\n"));
}

#[test]
fn imports_run_one_way() {
    let sources = Sources::read();
    let layers = Layers::read(&sources);
    let mut problems = Vec::new();
    let strays = sources.0.keys().filter(|module| !is_declaring(module));
    for stray in strays.filter(|module| layers.of(module).is_none()) {
        problems.push(format!("{}: in no layer", sources.path(stray)));
    }
    for named in layers
        .files
        .keys()
        .filter(|file| !sources.0.contains_key(*file))
    {
        problems.push(format!("`{}`: named, and no such file", named.join("/")));
    }
    let mut count = 0;
    for (from, import, to) in sources.imports().filter(|(from, ..)| !is_declaring(from)) {
        count += 1;
        if layers
            .of(&to)
            .is_none_or(|layer| Some(layer) > layers.of(from))
        {
            let (from, to) = (sources.path(from), sources.path(&to));
            problems.push(format!(
                "{from}: imports `{import}`, of {to}, which is below it"
            ));
        }
    }
    assert!(count > 100, "they are not all read");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Within a layer; `imports_run_one_way` sees to the others. A file and those in its
/// folder may import each other, as may a builder and what it builds.
#[test]
fn no_files_import_each_other() {
    let sources = Sources::read();
    let layers = Layers::read(&sources);
    let mut edges: BTreeMap<&Module, BTreeMap<Module, String>> = BTreeMap::new();
    for (from, import, to) in sources.imports() {
        let related = from.starts_with(&to) || to.starts_with(from);
        let built = [from, &to].map(|module| module.join("/"));
        let built = ["micro_batch", "builder"]
            .iter()
            .all(|name| built.iter().any(|it| it == name));
        let same_layer = layers.of(from) == layers.of(&to);
        if same_layer && !related && !built && !is_declaring(from) {
            edges.entry(from).or_default().insert(to, import);
        }
    }
    let mut cycles = BTreeSet::new();
    for from in edges.keys() {
        let mut way = vec![(*from).clone()];
        if find_cycle(&edges, &mut way) {
            let steps = way.windows(2).map(|step| {
                let import = &edges[&step[0]][&step[1]];
                format!("{} imports `{import}`", sources.path(&step[0]))
            });
            cycles.insert(steps.collect::<Vec<_>>().join(", "));
        }
    }
    let cycles: Vec<_> = cycles.into_iter().collect();
    assert!(cycles.is_empty(), "cycles:\n{}", cycles.join("\n"));
}

/// Extends the way until it is back where it began, past files behind that one in the
/// alphabet, so that each cycle is found once. Returns false if there is no such way.
fn find_cycle(edges: &BTreeMap<&Module, BTreeMap<Module, String>>, way: &mut Vec<Module>) -> bool {
    let Some(next) = edges.get(&way[way.len() - 1]) else {
        return false;
    };
    for to in next.keys() {
        let closes = way[0] == *to;
        if *to < way[0] || (!closes && way.contains(to)) {
            continue;
        }
        way.push(to.clone());
        if closes || find_cycle(edges, way) {
            return true;
        }
        way.pop();
    }
    false
}
