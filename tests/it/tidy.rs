//! What the repository promises of itself: links, paths, make targets, and versions that stand in one place.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// All files that are not built or downloaded, relative to the checkout.
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

/// A document's links, its anchors as GitHub makes them, and its code: spans and blocks.
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

/// The file that a link of this document means, and the anchor in it; none where it leads out of the repository.
fn target(document: &Path, link: &str) -> Option<(PathBuf, Option<String>)> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor.to_owned())));
    let path = if path.is_empty() { document.to_owned() } else { document.parent().unwrap().join(path) };
    Some((path, anchor))
}

#[test]
fn every_link_leads_somewhere() {
    for document in documents() {
        for link in Document::read(&document).links {
            let Some((path, anchor)) = target(&document, &link) else { continue };
            assert!(testbed::root().join(&path).exists(), "{}: {link} leads nowhere", document.display());
            if let Some(anchor) = anchor {
                let there = Document::read(&path).anchors.contains(&anchor);
                assert!(there, "{}: {link}: no such heading", document.display());
            }
        }
    }
}

#[test]
fn every_readme_is_linked_from_the_first_one() {
    let first = Path::new("README.md");
    let linked: BTreeSet<PathBuf> =
        Document::read(first).links.iter().filter_map(|link| Some(target(first, link)?.0)).collect();
    for document in documents() {
        if document != first && document.ends_with("README.md") {
            let folder = document.parent().unwrap();
            let found = linked.contains(&document) || linked.contains(folder) || linked.contains(&folder.join(""));
            assert!(found, "README.md does not link {}", document.display());
        }
    }
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
        assert!(documented.contains(target), "the make target {target} is documented nowhere");
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
fn versions_stand_in_one_place() {
    let toolchain = read(Path::new("rust-toolchain.toml"));
    let channel = toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap().trim_matches('"');
    let envoy = read(Path::new(".envoy-version"));
    let tools = read(Path::new("tests/mesh/go.mod"));
    let istio = tools.lines().find(|line| line.contains("istio.io/istio v")).unwrap();
    let istio = istio.rsplit([' ', '-']).find(|part| part.len() == 12).unwrap();
    assert!(read(Path::new("istio/README.md")).contains(istio), "istio/README.md does not name Istio's commit {istio}");
    let image = format!("newTag: distroless-v{}\n", envoy.trim());
    let kustomization = "istio/kustomization.yaml"; // can take it from nowhere else
    assert!(read(Path::new(kustomization)).contains(&image), "{kustomization}: not {image}");
    for (version, home) in
        [(envoy.trim(), ".envoy-version"), (channel, "rust-toolchain.toml"), (istio, "tests/mesh/go.mod")]
    {
        for path in files() {
            // Documents and results tell what was measured with which version; the lists of dependencies have all versions.
            let listed = ["md", "lock", "mod", "sum"];
            if path.extension().is_some_and(|extension| listed.iter().any(|known| extension == *known))
                || [COMPOSE, kustomization, "bench/results.json", home].iter().any(|own| path == Path::new(own))
            {
                continue;
            }
            let bytes = fs::read(testbed::root().join(&path)).unwrap();
            let there = String::from_utf8_lossy(&bytes).contains(version);
            assert!(!there, "{}: {version} stands in {home} already", path.display());
        }
    }
}

/// What Docker Compose reads besides its file; it cannot read `.envoy-version`.
const COMPOSE: &str = "envoy-docker/.env";

#[test]
fn compose_takes_envoy_at_its_version() {
    let image = format!("ENVOY_IMAGE=envoyproxy/envoy:v{}", read(Path::new(".envoy-version")).trim());
    assert!(read(Path::new(COMPOSE)).lines().any(|line| line == image), "{COMPOSE}: {image}");
}

#[test]
fn every_file_of_rust_says_what_it_is_for() {
    for path in files() {
        if path.extension().is_some_and(|extension| extension == "rs") && !path.starts_with("tests/data") {
            assert!(read(&path).starts_with("//! "), "{}", path.display());
        }
    }
}

#[test]
fn unsafe_blocks_stay_in_their_rooms() {
    let rooms = ["src/bytes.rs", "src/host.rs"].map(Path::new);
    for path in files() {
        if path.extension().is_some_and(|extension| extension == "rs") && !rooms.contains(&path.as_path()) {
            let block = ["unsafe", " {"].concat();
            assert!(!read(&path).contains(&block), "{}", path.display());
        }
    }
}

#[test]
fn the_egress_router_of_the_mesh_is_the_other_one_with_its_own_lists() {
    let without = |path: &str| {
        let (mut lists, mut own) = (0, false);
        let mut kept = String::new();
        for line in read(Path::new(path)).lines() {
            if line.contains("# What only your network knows") || line.contains("stat_prefix: peers") {
                (lists, own) = (lists + 1, true);
            } else if line.contains("# This host") || line.contains("on_match:") {
                own = false;
            }
            if !(own && line.contains("address_prefix: ")) {
                kept.push_str(line);
                kept.push('\n');
            }
        }
        assert_eq!(lists, 2, "{path}");
        kept
    };
    let (docker, mesh) = ("envoy-docker/egress-router.yaml", "istio/egress-router/egress-router.yaml");
    assert_eq!(without(docker), without(mesh), "{mesh}: not {docker}");
}
