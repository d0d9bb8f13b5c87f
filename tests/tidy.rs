//! The shape of the code: which layer may know which, and how long things may be.
//!
//! ```text
//!  edges (cli, client, config, sim) ─▶ shell (runtime) ─▶ ring ─▶ pure (auth limit measure session placement stamp store shard log)
//! ```
//!
//! Dependence goes one way. A pure module that could read a clock or a file would make replay, recovery
//! and simulation differ from the real run, and no other test would notice. This one reads `src/` and
//! `proto/src/` with a parser and fails on a breach; the tests below feed it breaches of each kind.
//!
//! It reads paths in `use` declarations and in code, but not inside the arguments of macros.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Lines of a file.
const FILE_LINES_MAX: usize = 800;
/// Lines of a function, from its signature to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;

/// The modules that are functions of their arguments.
const PURE: [&str; 10] = [
    "audit",
    "auth",
    "limit",
    "measure",
    "session",
    "placement",
    "stamp",
    "shard",
    "log",
    "store",
];

/// What no pure module may name: I/O, clocks, randomness, runtimes, and whoever has them.
#[rustfmt::skip] // a list, not a column
const IMPURE: &[&str] = &[
    "crate::cli", "crate::client", "crate::config", "crate::ring", "crate::runtime", "crate::sim",
    "crossbeam_channel", "futures_lite", "getrandom", "glommio", "io_uring", "libc", "memmap2", "rand",
    "rcgen", "rtrb", "rustls", "signal_hook", "std::collections::HashMap", "std::collections::HashSet",
    "std::env", "std::fs", "std::hash::RandomState", "std::io::stderr", "std::io::stdin",
    "std::io::stdout", "std::net::TcpListener", "std::net::TcpStream", "std::net::UdpSocket", "std::os",
    "std::process", "std::sync::Mutex", "std::sync::RwLock", "std::thread", "std::time::Instant",
    "std::time::SystemTime", "tokio", "tokio_rustls", "uuid",
];

/// What a module may not name beside that.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("shard", &["crate::session", "crate::auth", "crate::store"]),
    (
        "log",
        &[
            "crate::shard",
            "crate::session",
            "crate::auth",
            "crate::store",
        ],
    ),
    ("store", &["crate::session", "crate::auth"]),
    (
        "ring",
        &[
            "crate::runtime",
            "crate::shard",
            "crate::session",
            "crate::log",
        ],
    ),
    ("runtime", &["crate::sim", "crate::cli", "crate::client"]),
    ("sim", &["crate::runtime", "crate::cli"]),
    ("client", &["crate::cli", "glommio", "io_uring"]),
    ("config", &["crate::cli", "crate::client", "glommio"]),
];

/// Macros that are not left behind.
const MACROS: [&str; 3] = ["todo", "unimplemented", "dbg"];

/// Something out of shape.
#[derive(Debug, PartialEq, Eq)]
struct Breach {
    file: PathBuf,
    line: usize,
    what: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

/// A source file as a module of its crate.
struct Reader<'a> {
    file: &'a Path,
    /// `crate`, then the modules down to where the reader is.
    module: Vec<String>,
    forbidden: Vec<&'static str>,
    /// What a name means in this file: `time` → `std::time` after `use std::time`.
    names: BTreeMap<String, Vec<String>>,
    breaches: Vec<Breach>,
}

/// Everything out of shape in one file.
fn check(file: &Path, text: &str) -> Vec<Breach> {
    let module = module_of(file);
    let mut reader = Reader {
        file,
        forbidden: forbidden_in(&module, file),
        module,
        names: BTreeMap::new(),
        breaches: Vec::new(),
    };
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        reader.report(
            lines,
            format!("the file has {lines} lines, at most {FILE_LINES_MAX} are read"),
        );
    }
    match syn::parse_file(text) {
        Ok(parsed) => {
            let mut uses = Uses { found: Vec::new() };
            uses.visit_file(&parsed);
            for (name, path, line) in uses.found {
                reader.judge(&path, line);
                let path = reader.resolve(&path);
                reader.names.insert(name, path);
            }
            reader.visit_file(&parsed);
        }
        Err(error) => reader.report(error.span().start().line, format!("not Rust: {error}")),
    }
    reader.breaches.sort_by_key(|breach| breach.line);
    reader.breaches.dedup();
    reader.breaches
}

fn module_of(file: &Path) -> Vec<String> {
    let parts = file
        .components()
        .map(|part| part.as_os_str().to_string_lossy().into_owned());
    let mut parts: Vec<String> = parts.skip_while(|part| part != "src").skip(1).collect();
    if let Some(last) = parts.last_mut() {
        *last = last.trim_end_matches(".rs").to_owned();
    }
    if parts
        .last()
        .is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str()))
    {
        parts.pop();
    }
    parts.insert(0, "crate".to_owned());
    parts
}

fn forbidden_in(module: &[String], file: &Path) -> Vec<&'static str> {
    if file.starts_with("proto") || is_test_file(file) {
        return Vec::new();
    }
    let top = module.get(1).map_or("", String::as_str);
    let mut forbidden = Vec::new();
    if PURE.contains(&top) {
        forbidden.extend_from_slice(IMPURE);
    }
    for (name, paths) in FORBIDDEN {
        if *name == top {
            forbidden.extend_from_slice(paths);
        }
    }
    forbidden
}

fn is_test_file(file: &Path) -> bool {
    let name = |part: std::path::Component<'_>| part.as_os_str() == "tests";
    file.components().any(name) || file.file_stem().is_some_and(|stem| stem == "tests")
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else {
            return false;
        };
        list.path.is_ident("cfg") && list.tokens.to_string() == "test"
    })
}

/// Collects the `use` declarations outside tests: name, path, line.
struct Uses {
    found: Vec<(String, Vec<String>, usize)>,
}

impl Uses {
    fn flatten(&mut self, tree: &syn::UseTree, before: &[String], line: usize) {
        let with = |ident: &syn::Ident| [before, &[ident.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.flatten(&path.tree, &with(&path.ident), line),
            syn::UseTree::Name(name) if name.ident == "self" => {
                let last = before.last().cloned().unwrap_or_default();
                self.found.push((last, before.to_vec(), line));
            }
            syn::UseTree::Name(name) => {
                self.found
                    .push((name.ident.to_string(), with(&name.ident), line));
            }
            syn::UseTree::Rename(to) => {
                self.found
                    .push((to.rename.to_string(), with(&to.ident), line));
            }
            syn::UseTree::Glob(_) => {
                let glob = [before, &["*".to_owned()]].concat();
                self.found
                    .push((format!("*{}", before.join("::")), glob, line));
            }
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.flatten(tree, before, line);
                }
            }
        }
    }
}

impl<'ast> Visit<'ast> for Uses {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !is_test(&item.attrs) {
            self.flatten(&item.tree, &[], item.span().start().line);
        }
    }
}

impl Reader<'_> {
    fn report(&mut self, line: usize, what: String) {
        self.breaches.push(Breach {
            file: self.file.to_owned(),
            line,
            what,
        });
    }

    /// The full path that `path` means here.
    fn resolve(&self, path: &[String]) -> Vec<String> {
        let Some(first) = path.first() else {
            return Vec::new();
        };
        let mut base = match first.as_str() {
            "crate" | "iris" => vec!["crate".to_owned()],
            "self" => self.module.clone(),
            "core" | "alloc" => vec!["std".to_owned()],
            "super" => {
                let up = path.iter().take_while(|part| *part == "super").count();
                let keep = self.module.len().saturating_sub(up).max(1);
                return [&self.module[..keep], &path[up..]].concat();
            }
            name => self
                .names
                .get(name)
                .cloned()
                .unwrap_or_else(|| vec![first.clone()]),
        };
        base.extend_from_slice(&path[1..]);
        base
    }

    /// Reports the first rule that naming `path` breaks.
    fn judge(&mut self, path: &[String], line: usize) {
        let full = self.resolve(path).join("::");
        let breaks = |forbidden: &&&str| {
            let inside = full == **forbidden || full.starts_with(&format!("{forbidden}::"));
            inside
                || full
                    .strip_suffix('*')
                    .is_some_and(|all| forbidden.starts_with(all))
        };
        if let Some(forbidden) = self.forbidden.iter().find(breaks) {
            let layer = &self.module[1];
            let what = format!("`{layer}` may not use `{forbidden}`, and names `{full}`");
            self.report(line, what);
        }
    }

    fn measure(&mut self, name: &syn::Ident, block: &syn::Block) {
        let first = name.span().start().line;
        let lines = block.span().end().line + 1 - first;
        if lines > FUNCTION_LINES_MAX {
            let what = format!("`{name}` has {lines} lines, at most {FUNCTION_LINES_MAX} are read");
            self.report(first, what);
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let forbidden = self.forbidden.clone();
        if is_test(&item.attrs) {
            self.forbidden.clear();
        }
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
        self.forbidden = forbidden;
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path
            .segments
            .iter()
            .map(|part| part.ident.to_string())
            .collect();
        self.judge(&parts, path.span().start().line);
        visit::visit_path(self, path);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.measure(&item.sig.ident, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.measure(&item.sig.ident, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.measure(&item.sig.ident, block);
        }
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        let last = item.path.segments.last().map(|part| part.ident.to_string());
        if let Some(name) = last.filter(|name| MACROS.contains(&name.as_str())) {
            self.report(
                item.span().start().line,
                format!("`{name}!` was left behind"),
            );
        }
        visit::visit_macro(self, item);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        let line = attribute.span().start().line;
        let path = attribute.path();
        if let syn::Meta::List(list) = &attribute.meta {
            let tokens = list.tokens.to_string();
            let words = || tokens.split(|c: char| !c.is_alphanumeric() && c != '_');
            if path.is_ident("allow") || path.is_ident("cfg_attr") && words().any(|w| w == "allow")
            {
                self.report(
                    line,
                    "`allow` outlives its reason; use `expect` with one".to_owned(),
                );
            }
            if path.is_ident("expect") && !words().any(|word| word == "reason") {
                self.report(line, "`expect` without a reason".to_owned());
            }
        }
        visit::visit_attribute(self, attribute);
    }
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn the_source_is_in_shape() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for directory in ["src", "proto/src"] {
        sources(&root.join(directory), &mut files);
    }
    assert!(files.len() > 10, "the source was not found: {files:?}");
    files.sort();
    let mut breaches = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        breaches.extend(check(path.strip_prefix(root).unwrap(), &text));
    }
    let list: Vec<String> = breaches.iter().map(Breach::to_string).collect();
    assert!(
        breaches.is_empty(),
        "{} breaches:\n{}",
        list.len(),
        list.join("\n")
    );
}

fn whats(file: &str, text: &str) -> Vec<String> {
    check(Path::new(file), text)
        .into_iter()
        .map(|breach| breach.what)
        .collect()
}

#[test]
fn a_pure_module_that_reaches_out_is_found() {
    let breaches = [
        "use std::time::Instant;",
        "use std::time; fn f() -> time::SystemTime { loop {} }",
        "use std::time as t; fn f() { t::Instant::now(); }",
        "fn f() { std::fs::read(\"x\"); }",
        "use std::{fmt, fs::File};",
        "use std::time::*;",
        "use glommio::*;",
        "use tokio as t;",
        "fn f() { libc::getpid(); }",
        "use rand::Rng;",
        "fn f() { getrandom::fill(&mut []); }",
        "use crate::runtime::Ready;",
        "use crate::{limits, runtime};",
        "use iris::cli;",
        "use std::collections::HashMap;",
        "use core::time::Instant;",
        "fn f(x: std::net::TcpStream) {}",
        "mod inner { use super::super::super::runtime; }",
        "impl crate::client::X for Y {}",
    ];
    for text in breaches {
        for file in [
            "src/shard/inbox.rs",
            "src/auth/keys.rs",
            "src/log/format.rs",
        ] {
            assert_eq!(whats(file, text).len(), 1, "{file}: {text}");
        }
    }
}

#[test]
fn what_a_pure_module_may_use_is_not_found() {
    let text = "
        use std::collections::BTreeMap;
        use std::time::Duration;
        use iris_proto::id::UserId;
        use crate::placement::Shard;
        fn fs(time: u64) -> std::net::SocketAddr { fs::helper(time) }
        #[cfg(test)]
        mod tests { use std::time::Instant; use crate::runtime; fn f() { std::fs::read(\"x\"); } }
    ";
    assert_eq!(whats("src/session/mod.rs", text), Vec::<String>::new());
    assert_eq!(
        whats("src/shard/tests.rs", "use std::time::Instant;"),
        Vec::<String>::new()
    );
}

#[test]
fn layers_that_may_not_know_each_other_are_found() {
    let breaches = [
        ("src/shard/mod.rs", "use crate::session::Session;"),
        ("src/shard/inbox.rs", "use super::super::session;"),
        ("src/log/recovery.rs", "use crate::shard::Shard;"),
        ("src/runtime/reactor.rs", "use crate::sim::Disk;"),
        ("src/runtime/mod.rs", "fn f() { crate::cli::main(); }"),
        ("src/sim/mod.rs", "use crate::runtime;"),
        ("src/client/mod.rs", "use glommio::Task;"),
        ("src/ring.rs", "use crate::shard;"),
    ];
    for (file, text) in breaches {
        assert_eq!(whats(file, text).len(), 1, "{file}: {text}");
    }
    assert!(whats("src/session/mod.rs", "use crate::shard::Shard;").is_empty());
    assert!(whats("src/runtime/mod.rs", "use crate::session; use std::fs;").is_empty());
}

#[test]
fn what_is_too_long_is_found() {
    let body = |lines: usize| "let x = 1;\n".repeat(lines);
    let function = |lines| format!("fn f() {{\n{}}}\n", body(lines));
    assert!(whats("src/ring.rs", &function(68)).is_empty());
    assert_eq!(whats("src/ring.rs", &function(69)).len(), 1);
    let method = format!("struct S; impl S {{ {} }}", function(69));
    assert_eq!(whats("src/ring.rs", &method).len(), 1);
    let default = format!("trait T {{ {} }}", function(69));
    assert_eq!(whats("src/ring.rs", &default).len(), 1);
    let comments = |lines| "// line\n".repeat(lines);
    assert!(whats("src/ring.rs", &comments(800)).is_empty());
    assert_eq!(whats("src/ring.rs", &comments(801)).len(), 1);
}

#[test]
fn what_was_left_behind_is_found() {
    let breaches = [
        "fn f() { todo!() }",
        "fn f() { std::unimplemented!(\"later\"); }",
        "fn f() { let x = dbg!(1); }",
        "#[allow(dead_code)] fn f() {}",
        "#![allow(clippy::all)]",
        "#[cfg_attr(test, allow(unused))] fn f() {}",
        "#[expect(dead_code)] fn f() {}",
        "fn f( {",
    ];
    for text in breaches {
        assert_eq!(whats("src/cli/mod.rs", text).len(), 1, "{text}");
        assert_eq!(whats("proto/src/wire.rs", text).len(), 1, "{text}");
    }
    let fine = "#[expect(dead_code, reason = \"why\")] fn f() { allow(1); todo(); }";
    assert!(whats("src/cli/mod.rs", fine).is_empty());
}

#[test]
fn a_breach_says_where() {
    let breach = check(Path::new("src/log/mod.rs"), "//! Doc.\n\nuse std::fs;\n").remove(0);
    assert_eq!(
        breach.to_string(),
        "src/log/mod.rs:3: `log` may not use `std::fs`, and names `std::fs`"
    );
}

/// The names in backquotes that look like tests: words of a sentence. `…` stands for anything.
fn cited(text: &str) -> Vec<&str> {
    let is_name = |name: &&str| {
        let is_word =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '…';
        name.matches('_').count() >= 3 && name.chars().all(is_word) && !name.starts_with("iris_")
    };
    text.split('`').skip(1).step_by(2).filter(is_name).collect()
}

/// Whether `name` is one of these, with `…` for anything.
fn is_one_of(name: &str, functions: &[String]) -> bool {
    let parts: Vec<&str> = name.split('…').collect();
    functions.iter().any(|function| {
        let Some(mut rest) = function.strip_prefix(parts[0]) else {
            return false;
        };
        let found = parts[1..].iter().all(|part| {
            let at = rest.find(part);
            rest = at.map_or(rest, |at| &rest[at + part.len()..]);
            at.is_some()
        });
        found && (rest.is_empty() || parts.len() > 1 && parts[parts.len() - 1].is_empty())
    })
}

#[test]
fn every_test_that_a_document_cites_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for directory in ["src", "tests", "proto", "tools"] {
        sources(&root.join(directory), &mut files);
    }
    let mut functions = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        let names = text
            .split("fn ")
            .skip(1)
            .filter_map(|rest| rest.split(['(', '<']).next());
        functions.extend(names.map(str::to_owned));
    }
    let mut missing = Vec::new();
    for document in ["docs/SECURITY.md", "docs/REQUIREMENTS-STATUS.md"] {
        let text = fs::read_to_string(root.join(document)).unwrap();
        let names = cited(&text);
        assert!(names.len() > 20, "{document} cites hardly anything");
        let gone = names.iter().filter(|name| !is_one_of(name, &functions));
        missing.extend(gone.map(|name| format!("{document}: {name}")));
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn a_cited_test_that_is_not_there_is_found() {
    let text = "`a_test_that_is_there`, `a_test_…_there`, `a_test_that_…` and `a_b`, `iris_no_test_at_all`";
    let names = cited(text);
    assert_eq!(
        names,
        ["a_test_that_is_there", "a_test_…_there", "a_test_that_…"]
    );
    let functions = ["a_test_that_is_there".to_owned()];
    assert!(names.iter().all(|name| is_one_of(name, &functions)));
    for gone in [
        "a_test_that_is",
        "a_test_…_gone",
        "another_test_…",
        "test_that_is_there",
    ] {
        assert!(!is_one_of(gone, &functions), "{gone}");
    }
}
