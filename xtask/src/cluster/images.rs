//! The images that pods of the cluster are made of, written without Docker and given to containerd: there is no registry.
//!
//! Which names the suite's backends go by, its own manifests say.

use std::{collections::BTreeSet, fs, path::PathBuf};

use anyhow::{Context, Result, bail};

use super::{
    build::{self, Programs},
    crds::Release,
    state::State,
};
use crate::{
    image::{self, File, Image},
    place, run,
};

/// The image that holds a pod's namespaces.
pub(super) const PAUSE: &str = "registry.k8s.io/pause:3.10";
/// The image of the suite's backends, without tags.
const ECHO: [&str; 2] =
    ["registry.k8s.io/gateway-api/echo-basic", "registry.k8s.io/gateway-api/conformance/echo-basic"];
/// The image of the suite's UDP backend, without tags.
const COREDNS: &str = "registry.k8s.io/coredns/coredns";

/// An image of one program.
struct Spec<'a> {
    program: &'a str,
    /// Folder of the program; its name is the image's key in the cache.
    folder: &'a PathBuf,
    user: u32,
    names: Vec<String>,
}

/// Writes the images that are not in the cache; returns their files.
///
/// # Errors
/// A program cannot be read, or the suite's manifests name no image of the kind that is known.
pub(super) fn write(programs: &Programs) -> Result<Vec<PathBuf>> {
    let named = named_by_suite(programs.release)?;
    let names = |images: &[&str]| {
        let is_of = |name: &str, image: &str| name.strip_prefix(image).is_some_and(|tag| tag.starts_with(':'));
        let of = |name: &&String| images.iter().any(|image| is_of(name, image));
        named.iter().filter(of).cloned().collect::<Vec<_>>()
    };
    let specs = [
        Spec { program: "pause", folder: &programs.pause, user: 65535, names: vec![PAUSE.to_owned()] },
        Spec { program: "echo-basic", folder: &programs.echo, user: 65532, names: names(&ECHO) },
        Spec { program: "coredns", folder: &programs.coredns, user: 65532, names: names(&[COREDNS]) },
    ];
    let folder = place::cache()?.join("cluster/images");
    let mut files = Vec::new();
    for Spec { program, folder: from, user, names } in specs {
        // The newer suite has no UDP backend of its own: CoreDNS is not wanted.
        if names.is_empty() && program == "coredns" && programs.release == Release::Types {
            continue;
        }
        if names.is_empty() {
            bail!("the suite's manifests name no image of {program}: see {}", file!());
        }
        let key = from.file_name().context("a program's folder has a name")?;
        // One program goes by other names in each release.
        let release = programs.release.version();
        let file = folder.join(format!("{}-{release}.tar", key.to_string_lossy()));
        if !file.exists() {
            let content = fs::read(from.join(program)).with_context(|| format!("cannot read {program}"))?;
            let path = format!("/{program}");
            let spec = Image { names: &names, entry_point: &path, user: (user, user), labels: &[] };
            let archive = image::write(&spec, &[File { path: path.clone(), mode: 0o755, content }]);
            let partial = file.with_extension("partial");
            place::write(&partial, archive)?;
            fs::rename(&partial, &file).with_context(|| format!("cannot rename {}", partial.display()))?;
        }
        files.push(file);
    }
    Ok(files)
}

/// A name of the suite's backend.
pub(super) fn echo() -> Result<String> {
    let named = named_by_suite(Release::Suite)?.into_iter().find(|name| name.starts_with(ECHO[0]));
    named.context("the suite's manifests name no backend")
}

/// Every image that the suite's manifests name.
fn named_by_suite(release: Release) -> Result<BTreeSet<String>> {
    let sources = place::files_below(&build::suite_sources(release)?)?;
    let manifests = sources.iter().filter(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    let mut names = BTreeSet::new();
    for manifest in manifests {
        names.extend(image_names(&fs::read_to_string(manifest)?));
    }
    Ok(names)
}

/// Values of `image:` in a manifest.
fn image_names(manifest: &str) -> impl Iterator<Item = String> {
    let values = manifest.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("image:"));
    values.map(|value| value.trim().trim_matches(['"', '\'']).to_owned())
}

impl State {
    /// Gives an image's file to the node.
    ///
    /// # Errors
    /// The cluster does not run, or containerd does not take the file.
    pub(super) fn load(&self, file: &std::path::Path) -> Result<()> {
        let mut import = self.ctr()?;
        run::read(import.args(["images", "import"]).arg(file)).map(drop)
    }

    /// Gives the images of the cluster's own programs to the node, once.
    pub(super) fn load_images(&self, files: &[PathBuf]) -> Result<()> {
        let done = self.run.join("images-loaded");
        if done.exists() {
            return Ok(());
        }
        run::judge("load images", || files.iter().try_for_each(|file| self.load(file)))?;
        place::write(&done, "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_a_manifest_are_found_however_they_are_written() {
        let manifest = "      - image: a/b:1\n        name: x\n      - name: y\n        image: \"c/d:2\" \n  imagePullPolicy: Always\n";
        assert_eq!(image_names(manifest).collect::<Vec<_>>(), ["a/b:1", "c/d:2"]);
    }
}
