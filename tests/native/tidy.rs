//! Consistency of the repository: links, paths, make targets, and versions in one place.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};
use testbed::Config;

/// Returns the paths of all files except those that are built or downloaded, relative to the checkout.
fn files() -> Vec<PathBuf> {
    fn walk(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let name = entry.unwrap().file_name();
            let path = folder.join(&name);
            if ["target", "dist", ".git"].iter().any(|skipped| name == *skipped) {
                continue;
            }
            if root.join(&path).is_dir() {
                walk(root, &path, files);
            } else {
                files.push(path);
            }
        }
    }
    let mut files = Vec::new();
    walk(&testbed::root(), Path::new(""), &mut files);
    files
}

fn read(path: &Path) -> String {
    fs::read_to_string(testbed::root().join(path)).unwrap()
}

fn documents() -> Vec<PathBuf> {
    files().into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

/// The links, anchors (as GitHub makes them) and code spans and blocks of a document.
#[derive(Default)]
struct Document {
    links: Vec<String>,
    anchors: BTreeSet<String>,
    code: Vec<String>,
}

impl Document {
    fn read(path: &Path) -> Self {
        let text = read(path);
        let mut document = Self::default();
        let (mut heading, mut block) = (None, None);
        for event in Parser::new_ext(&text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    document.links.push(dest_url.into_string());
                }
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let kept = |letter: char| letter.is_alphanumeric() || letter == ' ' || letter == '-';
                    let title = heading.take().unwrap().to_lowercase();
                    document
                        .anchors
                        .insert(title.chars().filter(|&letter| kept(letter)).collect::<String>().replace(' ', "-"));
                }
                Event::Start(Tag::CodeBlock(_)) => block = Some(String::new()),
                Event::End(TagEnd::CodeBlock) => document.code.extend(block.take()),
                Event::Code(code) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&code);
                    }
                    document.code.push(code.into_string());
                }
                Event::Text(text) => {
                    if let Some(gathered) = heading.as_mut().or(block.as_mut()) {
                        gathered.push_str(&text);
                    }
                }
                _ => {}
            }
        }
        document
    }
}

/// Returns the file to which a link of this document leads, and the anchor in it; `None` if it leaves the repository.
fn target(document: &Path, link: &str) -> Option<(PathBuf, Option<String>)> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor.to_owned())));
    let path = if path.is_empty() { document.to_owned() } else { document.parent().unwrap().join(path) };
    Some((path, anchor))
}

#[test]
fn every_link_has_a_target() {
    for document in documents() {
        for link in Document::read(&document).links {
            let Some((path, anchor)) = target(&document, &link) else { continue };
            assert!(
                testbed::root().join(&path).exists(),
                "{}: the target of {link} does not exist",
                document.display()
            );
            if let Some(anchor) = anchor {
                let exists = Document::read(&path).anchors.contains(&anchor);
                assert!(exists, "{}: the heading of {link} does not exist", document.display());
            }
        }
    }
}

#[test]
fn the_main_readme_links_every_other_readme() {
    let main = Path::new("README.md");
    let linked: BTreeSet<PathBuf> =
        Document::read(main).links.iter().filter_map(|link| Some(target(main, link)?.0)).collect();
    for document in documents() {
        if document != main && document.ends_with("README.md") {
            let folder = document.parent().unwrap();
            let found = linked.contains(&document) || linked.contains(folder) || linked.contains(&folder.join(""));
            assert!(found, "README.md does not link {}", document.display());
        }
    }
}

/// The picture is drawn by hand, so it could show an outdated last line.
#[test]
fn the_picture_of_the_demo_ends_as_the_demo_does() {
    let code = read(Path::new("xtask/src/table.rs"));
    let (_, last) = code.split_once("println!(\"{} connections").unwrap();
    let (last, _) = last.split_once('"').unwrap();
    let picture = read(Path::new("docs/demo.svg")).replace("&#160;", " ");
    assert!(picture.contains(&format!("13 connections{last}")), "docs/demo.svg does not show: 13 connections{last}");
}

#[test]
fn every_documented_make_target_exists() {
    let makefile = read(Path::new("Makefile"));
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| Some(line.split_once(": ")?.0))
        .collect();
    let mut documented = BTreeSet::new();
    for document in documents() {
        for code in Document::read(&document).code {
            for line in code.lines() {
                let Some(rest) = line.trim_start_matches("$ ").strip_prefix("make ") else { continue };
                let words =
                    rest.split_whitespace().take_while(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-'));
                for word in words {
                    assert!(targets.contains(word), "{}: no make target {word}", document.display());
                    documented.insert(word.to_owned());
                }
            }
        }
    }
    for target in targets {
        assert!(documented.contains(target), "no document mentions the make target {target}");
    }
}

#[test]
fn every_documented_path_exists() {
    let root = testbed::root();
    let tops: BTreeSet<String> =
        files().iter().map(|path| path.iter().next().unwrap().to_string_lossy().into_owned()).collect();
    for document in documents() {
        for code in Document::read(&document).code {
            for word in code.split_whitespace() {
                let word = word.trim_matches([',', ';', '.', '"', '\'', '(', ')']).trim_start_matches("./");
                let Some((top, _)) = word.split_once('/') else { continue };
                if tops.contains(top) {
                    assert!(root.join(word).exists(), "{}: no such path: {word}", document.display());
                }
            }
        }
    }
}

#[test]
fn versions_are_stated_in_one_place() {
    let toolchain = read(Path::new("rust-toolchain.toml"));
    let channel = toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap().trim_matches('"');
    let envoy = read(Path::new(".envoy-version"));
    let tools = read(Path::new("tests/kubernetes/tools/istio/go.mod"));
    let istio = tools.lines().find(|line| line.contains("istio.io/istio v")).unwrap();
    let istio = istio.rsplit([' ', '-']).find(|part| part.len() == 12).unwrap();
    assert!(read(Path::new("istio/README.md")).contains(istio), "istio/README.md does not name the commit {istio}");
    let image = format!("newTag: distroless-v{}\n", envoy.trim());
    let kustomization = "istio/egress-routers/common/kustomization.yaml"; // cannot read .envoy-version
    assert!(read(Path::new(kustomization)).contains(&image), "{kustomization} does not contain {image}");
    for (version, home) in [
        (envoy.trim(), ".envoy-version"),
        (channel, "rust-toolchain.toml"),
        (istio, "tests/kubernetes/tools/istio/go.mod"),
    ] {
        for path in files() {
            // Documents and results name the version that was measured. Lock files contain all versions.
            let listed = ["md", "lock", "mod", "sum"];
            if path.extension().is_some_and(|extension| listed.iter().any(|known| extension == *known))
                || [COMPOSE, kustomization, "bench/results.json", home].iter().any(|own| path == Path::new(own))
            {
                continue;
            }
            let bytes = fs::read(testbed::root().join(&path)).unwrap();
            let repeats = String::from_utf8_lossy(&bytes).contains(version);
            assert!(!repeats, "{}: {version} belongs in {home} only", path.display());
        }
    }
}

#[test]
fn the_changelog_starts_with_unreleased_changes_or_the_current_version() {
    let manifest = read(Path::new("Cargo.toml"));
    let version = manifest.lines().find_map(|line| line.strip_prefix("version = ")).unwrap().trim_matches('"');
    let changelog = read(Path::new("CHANGELOG.md"));
    let section = changelog.lines().find(|line| line.starts_with("## ")).unwrap();
    let is_version = section.starts_with(&format!("## [{version}] - "));
    let is_next = section == "## [Unreleased]" && changelog.contains(&format!("The next version is {version}."));
    assert!(is_version || is_next, "CHANGELOG.md starts with {section:?}, but the version is {version}");
}

/// The environment of Docker Compose, which cannot read `.envoy-version`.
const COMPOSE: &str = "envoy-docker/.env";

#[test]
fn compose_uses_the_pinned_envoy_version() {
    let image = format!("ENVOY_IMAGE=envoyproxy/envoy:v{}", read(Path::new(".envoy-version")).trim());
    assert!(read(Path::new(COMPOSE)).lines().any(|line| line == image), "{COMPOSE} has no line {image}");
}

#[test]
fn every_rust_file_starts_with_a_module_comment() {
    for path in files() {
        if path.extension().is_some_and(|extension| extension == "rs") && !path.starts_with("tests/data") {
            assert!(read(&path).starts_with("//! "), "{} does not start with a module comment", path.display());
        }
    }
}

#[test]
fn unsafe_blocks_are_only_in_the_hosts() {
    let allowed = ["allocator", "entry_points", "native", "wasm"].map(|file| Path::new("src/host").join(file));
    let fuzzed = Path::new("fuzz/src/native_boundary.rs");
    for path in files() {
        if path == fuzzed || allowed.iter().any(|host| path.with_extension("") == *host || path.starts_with(host)) {
            continue;
        }
        if path.extension().is_some_and(|extension| extension == "rs") {
            let block = ["unsafe", " {"].concat();
            assert!(!read(&path).contains(&block), "{} has an unsafe block", path.display());
        }
    }
}

#[test]
fn the_configurations_of_the_native_module_differ_only_in_the_filter() {
    for name in ["sidecar", "standalone"] {
        let path = |file: String| testbed::root().join("envoy-docker").join(file);
        let expected = Config::file(&path(format!("{name}.yaml"))).unwrap().native("sluice").unwrap();
        let native = Config::file(&path(format!("{name}-native.yaml"))).unwrap();
        assert_eq!(native.text(), expected.text(), "{name}-native.yaml differs from {name}.yaml");
    }
}

/// Returns the addresses that follow the text `list` in an Envoy configuration, without the comments between them.
fn addresses(path: &str, list: &str) -> Vec<String> {
    let text = read(Path::new(path));
    let (_, rest) = text.split_once(list).unwrap_or_else(|| panic!("{path} has no list {list}"));
    let is_address = |line: &&str| line.contains("address_prefix: ");
    let is_comment = |line: &&str| line.trim_start().starts_with('#');
    let lines = rest.lines().skip_while(|line| !is_address(line));
    let lines = lines.take_while(|line| is_address(line) || is_comment(line)).filter(is_address);
    lines.filter_map(|line| Some(line.split_once("{ ")?.1.split_once(" }")?.0.to_owned())).collect()
}

#[test]
fn both_egress_routers_refuse_the_same_destinations() {
    let (docker, istio) = ("envoy-docker/egress-router.yaml", "istio/egress-routers/common/egress-router.yaml");
    let shared = addresses(istio, "stat_prefix: never");
    assert!(shared.len() > 15, "{shared:?}");
    let never = addresses(docker, "stat_prefix: never");
    // In Docker, the list starts with the addresses of the routers. In a cluster, these are private.
    assert!(never.ends_with(&shared), "{docker}: {never:?}\n{istio}: {shared:?}");
    let private = addresses(docker, "stat_prefix: private");
    assert_eq!(private, addresses("istio/settings/routers.yaml", "private: &private"));
    assert!(private.len() > 5, "{private:?}");
}
