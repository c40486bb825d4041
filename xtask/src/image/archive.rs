//! A container image as one file, in the two forms that there are: OCI layout, which containerd and podman read, and the
//! older list of `docker save`, for `docker load`. Both name the same blobs.
//!
//! One layer, not compressed: what reads it is on the same machine. The same content gives the same bytes.

use std::{collections::BTreeSet, env};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::tar::Tar;

/// What an image has beside its files.
#[derive(Clone, Debug)]
pub(crate) struct Image<'a> {
    /// Full names with tags, e.g. `registry.k8s.io/pause:3.10`.
    pub(crate) names: &'a [String],
    /// Its program, an absolute path in the image.
    pub(crate) entry_point: &'a str,
    /// User and group that it runs as, numbers.
    pub(crate) user: (u32, u32),
    /// Labels, for people and registries.
    pub(crate) labels: &'a [(&'a str, String)],
}

/// A file of an image.
#[derive(Clone, Debug)]
pub(crate) struct File {
    /// Absolute path in the image.
    pub(crate) path: String,
    /// Permissions.
    pub(crate) mode: u32,
    /// Content.
    pub(crate) content: Vec<u8>,
}

/// User of programs that need no rights, by the number that distroless images use too.
const NONROOT: u32 = 65532;

/// Writes an image with some files, and with the users and folders that every program expects.
pub(crate) fn write(image: &Image<'_>, files: &[File]) -> Vec<u8> {
    let layer = layer(files);
    let layer_digest = digest(&layer);
    let config = json!({
        "architecture": machine(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Entrypoint": [image.entry_point],
            "User": format!("{}:{}", image.user.0, image.user.1),
            "WorkingDir": "/",
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin:/"],
            "Labels": image.labels.iter().map(|(key, value)| (*key, value.as_str())).collect::<std::collections::BTreeMap<_, _>>(),
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image"}],
    });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let manifests: Vec<_> = image.names.iter().map(|name| named(descriptor(MANIFEST_TYPE, &manifest), name)).collect();
    let index =
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests});
    let docker = json!([{
        "Config": blob(&digest(&config)),
        "RepoTags": image.names,
        "Layers": [blob(&layer_digest)],
    }]);
    let mut archive = Tar::default();
    archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
    archive.file("index.json", 0o644, index.to_string().as_bytes());
    archive.file("manifest.json", 0o644, docker.to_string().as_bytes());
    archive.folder("blobs", 0o755);
    archive.folder("blobs/sha256", 0o755);
    for content in [&manifest, &config, &layer] {
        archive.file(&blob(&digest(content)), 0o644, content);
    }
    archive.into_bytes()
}

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// The name under which containerd finds an image, and the tag alone, which the OCI layout asks for.
fn named(mut descriptor: Value, name: &str) -> Value {
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    descriptor["annotations"] = json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
    descriptor["platform"] = json!({"architecture": machine(), "os": "linux"});
    descriptor
}

fn layer(files: &[File]) -> Vec<u8> {
    let mut layer = Tar::default();
    let mut folders = BTreeSet::new();
    let mut add = |layer: &mut Tar, path: &str| {
        // A folder stands before what lies in it.
        let ends = path.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0);
        for folder in ends.map(|at| &path[1..at]) {
            if folders.insert(folder.to_owned()) {
                layer.folder(folder, 0o755);
            }
        }
    };
    layer.folder("tmp", 0o1777);
    layer.folder("root", 0o700);
    let passwd =
        format!("root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:{NONROOT}:{NONROOT}:nonroot:/:/sbin/nologin\n");
    let group = format!("root:x:0:\nnonroot:x:{NONROOT}:\n");
    for (path, content) in [("/etc/passwd", passwd), ("/etc/group", group)] {
        add(&mut layer, path);
        layer.file(&path[1..], 0o644, content.as_bytes());
    }
    for File { path, mode, content } in files {
        add(&mut layer, path);
        layer.file(path.trim_start_matches('/'), *mode, content);
    }
    layer.into_bytes()
}

fn descriptor(kind: &str, content: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": format!("sha256:{}", digest(content)), "size": content.len()})
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{digest}")
}

fn digest(content: &[u8]) -> String {
    format!("{:x}", Sha256::digest(content))
}

/// This machine in Go's words, which are those of images.
fn machine() -> &'static str {
    match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use super::*;

    fn image(names: &[String]) -> Vec<u8> {
        let image = Image { names, entry_point: "/bin/it", user: (NONROOT, NONROOT), labels: &[] };
        write(&image, &[File { path: "/bin/it".to_owned(), mode: 0o755, content: b"program".to_vec() }])
    }

    fn extract(archive: &[u8], name: &str) -> Vec<u8> {
        let mut tar = Command::new("tar");
        let mut child = tar.args(["-xOf", "-", name]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(archive).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "no {name}");
        output.stdout
    }

    fn names() -> Vec<String> {
        ["example.com/it:1", "example.com/it:2"].map(str::to_owned).to_vec()
    }

    fn read_json(archive: &[u8], name: &str) -> Value {
        serde_json::from_slice(&extract(archive, name)).unwrap()
    }

    /// The blob that a descriptor means; it must be what the descriptor says.
    fn follow(archive: &[u8], descriptor: &Value) -> Vec<u8> {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let content = extract(archive, &format!("blobs/sha256/{digest}"));
        assert_eq!(format!("{:x}", Sha256::digest(&content)), digest);
        assert_eq!(descriptor["size"], content.len());
        content
    }

    #[test]
    fn every_name_leads_to_the_program_through_the_oci_layout() {
        let archive = image(&names());
        let index = read_json(&archive, "index.json");
        let manifests = index["manifests"].as_array().unwrap();
        let found: Vec<_> =
            manifests.iter().map(|m| m["annotations"]["io.containerd.image.name"].as_str().unwrap()).collect();
        assert_eq!(found, names());
        for descriptor in manifests {
            let manifest: Value = serde_json::from_slice(&follow(&archive, descriptor)).unwrap();
            let config: Value = serde_json::from_slice(&follow(&archive, &manifest["config"])).unwrap();
            let layer = follow(&archive, &manifest["layers"][0]);
            assert_eq!(config["config"]["User"], "65532:65532");
            assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
            assert_eq!(extract(&layer, "bin/it"), b"program");
            assert!(String::from_utf8(extract(&layer, "etc/passwd")).unwrap().contains("nonroot:x:65532"));
        }
    }

    #[test]
    fn dockers_list_names_the_same_blobs() {
        let archive = image(&names());
        let docker = &read_json(&archive, "manifest.json")[0];
        assert_eq!(docker["RepoTags"], json!(names()));
        assert_eq!(extract(&extract(&archive, docker["Layers"][0].as_str().unwrap()), "bin/it"), b"program");
        assert_eq!(read_json(&archive, docker["Config"].as_str().unwrap())["config"]["Entrypoint"], json!(["/bin/it"]));
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        assert!(image(&names()) == image(&names()));
    }
}
