//! As much of Rust's grammar as it takes to find definitions and imports.

/// Identifiers, punctuation, and a `""` for each string; no comments.
pub(super) type Tokens = Vec<String>;

/// A path that the code names, by `use` or in passing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Import {
    pub(super) path: Vec<String>,
    /// The name that a `use` gives it; `*` for a glob.
    pub(super) name: Option<String>,
    /// A `pub use`, which passes the name on.
    pub(super) public: bool,
}

impl Import {
    fn new(path: Vec<String>, name: Option<String>) -> Self {
        Self {
            path,
            name,
            public: false,
        }
    }
}

/// Splits the text, and leaves out what is there for `cfg(test)` alone.
pub(super) fn tokens(text: &str) -> Tokens {
    without_tests(split(text))
}

fn split(text: &str) -> Tokens {
    let text: Vec<char> = text.chars().collect();
    let starts_with = |at: usize, with: &str| {
        let with: Vec<char> = with.chars().collect();
        text[at..].starts_with(&with)
    };
    let is_word = |at: usize| {
        text.get(at)
            .is_some_and(|c| c.is_alphanumeric() || *c == '_')
    };
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let start = at;
        if starts_with(at, "//") {
            while at < text.len() && text[at] != '\n' {
                at += 1;
            }
        } else if starts_with(at, "/*") {
            let mut depth = 0;
            loop {
                let step = match () {
                    () if starts_with(at, "/*") => 1,
                    () if starts_with(at, "*/") => -1,
                    () => 0,
                };
                depth += step;
                at += if step == 0 { 1 } else { 2 };
                if depth == 0 || at >= text.len() {
                    break;
                }
            }
        } else if text[at] == '"' {
            at += 1;
            while at < text.len() && text[at] != '"' {
                at += if text[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
            tokens.push("\"\"".to_owned());
        } else if text[at] == '\'' && (starts_with(at + 1, "\\") || starts_with(at + 2, "'")) {
            at += if text[at + 1] == '\\' { 3 } else { 2 };
            while text[at] != '\'' {
                at += 1;
            }
            at += 1;
        } else if is_word(at) || text[at] == '\'' {
            at += 1;
            while is_word(at) {
                at += 1;
            }
            let word: String = text[start..at].iter().collect();
            let hashes = text[at..].iter().take_while(|c| **c == '#').count();
            let is_raw = matches!(&*word, "r" | "br" | "cr") && starts_with(at + hashes, "\"");
            if is_raw {
                let end = format!("\"{}", "#".repeat(hashes));
                at += hashes + 1;
                while !starts_with(at, &end) {
                    at += 1;
                }
                at += end.len();
            }
            tokens.push(if is_raw { "\"\"".to_owned() } else { word });
        } else if starts_with(at, "::") {
            at += 2;
            tokens.push("::".to_owned());
        } else {
            at += 1;
            if !text[start].is_whitespace() {
                tokens.push(text[start].to_string());
            }
        }
    }
    tokens
}

fn without_tests(tokens: Tokens) -> Tokens {
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at..].starts_with(&["#", "[", "cfg", "(", "test", ")", "]"].map(String::from)) {
            at = item_end(&tokens, at);
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    kept
}

/// Where the item ends that starts here, perhaps with attributes.
fn item_end(tokens: &[String], start: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(start) {
        match &**token {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 && matches!(&**token, "}" | ";") {
            return at + 1;
        }
    }
    tokens.len()
}

/// Whether an item may start here.
fn starts_item(tokens: &[String], at: usize) -> bool {
    let before = at.checked_sub(1).map(|before| &*tokens[before]);
    matches!(
        before,
        None | Some("{" | "}" | ";" | "]" | ")" | "pub" | "unsafe")
    )
}

/// The names of the types and traits that are defined here, but for associated types.
pub(super) fn definitions(tokens: &Tokens) -> Vec<String> {
    let mut names = Vec::new();
    // For each open brace, whether it is that of a trait or an implementation.
    let mut blocks = Vec::new();
    let mut in_header = false;
    for (at, token) in tokens.iter().enumerate() {
        let next = |ahead: usize| tokens.get(at + ahead).map_or("", |token| token);
        let defines = starts_item(tokens, at)
            && match &**token {
                "struct" | "enum" | "trait" => true,
                "type" => blocks.last() != Some(&true),
                "union" => matches!(next(2), "{" | "<" | "where"),
                _ => false,
            };
        if defines {
            names.push(next(1).to_owned());
        }
        match &**token {
            "impl" | "trait" if starts_item(tokens, at) => in_header = true,
            "{" => blocks.push(std::mem::take(&mut in_header)),
            "}" => drop(blocks.pop()),
            _ => {}
        }
    }
    names
}

/// The paths of all `use` items, and those within the crate that stand elsewhere.
pub(super) fn imports(tokens: &Tokens) -> Vec<Import> {
    let mut imports = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let is_path = tokens.get(at + 1).is_some_and(|next| next == "::");
        if tokens[at] == "use" && starts_item(tokens, at) {
            let before = imports.len();
            let public = at > 0 && matches!(&*tokens[at - 1], "pub" | ")");
            at = use_tree(tokens, at + 1, Vec::new(), &mut imports);
            for import in &mut imports[before..] {
                import.public = public;
            }
        } else if is_path && matches!(&*tokens[at], "crate" | "super") {
            let mut path = vec![tokens[at].clone()];
            while tokens[at + 1] == "::" && tokens[at + 2] != "<" {
                at += 2;
                path.push(tokens[at].clone());
            }
            imports.push(Import::new(path, None));
        }
        at += 1;
    }
    imports
}

/// Reads a tree of a `use` item, and returns where it ends.
fn use_tree(
    tokens: &Tokens,
    mut at: usize,
    mut path: Vec<String>,
    imports: &mut Vec<Import>,
) -> usize {
    loop {
        match &*tokens[at] {
            "::" => at += 1,
            "{" => {
                at += 1;
                while tokens[at] != "}" {
                    at = use_tree(tokens, at, path.clone(), imports);
                    at += usize::from(tokens[at] == ",");
                }
                return at + 1;
            }
            "as" => {
                let name = Some(tokens[at + 1].clone());
                imports.push(Import::new(path, name));
                return at + 2;
            }
            "," | "}" | ";" => {
                let name = path.iter().rfind(|part| *part != "self").cloned();
                imports.push(Import::new(path, name));
                return at;
            }
            part => {
                path.push(part.to_owned());
                at += 1;
            }
        }
    }
}
