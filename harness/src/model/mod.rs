//! A model: a directory in Hugging Face layout, opened, hashed, checked, and held to its manifest.

use std::path::{Path, PathBuf};

use driftgauge_protocol::{BertConfig, Dtype, LoadRequest};

mod config;
mod file;
pub mod manifest;
mod names;
mod tokenizer;
mod torch_file;
mod weights;

pub use file::HashedFile;
pub use manifest::Manifest;
pub use tokenizer::{Encoded, Input, MASK, Tokenizer, UNKNOWN};
pub use weights::{ModelWeights, WeightView};

/// What is wrong with a model. Every message names the file; [`ModelError::hint`] names the next
/// step.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file or folder cannot be read.
    #[error("cannot read `{path}`")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the file system says.
        #[source]
        source: std::io::Error,
    },
    /// A file that every model has is not there.
    #[error("`{directory}` has no {wanted}")]
    Missing {
        /// The model directory.
        directory: PathBuf,
        /// The file, or the files of which one must be there.
        wanted: &'static str,
    },
    /// `config.json` is not understood or asks for what cannot be honoured.
    #[error("`{path}`: {problem}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the key.
        problem: String,
    },
    /// The weights do not fit the architecture or are damaged.
    #[error("`{path}`: {problem}")]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the tensor.
        problem: String,
    },
    /// A tokenizer file is not understood or does not fit.
    #[error("`{path}`: {problem}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line where there is one.
        problem: String,
    },
    /// A manifest is not understood.
    #[error("manifest `{path}`: {problem}")]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong, with the line.
        problem: String,
    },
    /// A directory claims to be a model and is not.
    #[error("`{directory}` is not the model `{id}`: {}", differences.join("; "))]
    NotTheModel {
        /// The model directory.
        directory: PathBuf,
        /// The model that it claims to be.
        id: String,
        /// The manifest that says so.
        manifest: PathBuf,
        /// One sentence for each file that differs.
        differences: Vec<String>,
    },
}

impl ModelError {
    /// The next step for the user.
    pub fn hint(&self) -> String {
        match self {
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                "--model takes a local directory; driftgauge downloads nothing".to_owned()
            }
            Self::Io { .. } => "--model takes a directory that can be read".to_owned(),
            Self::Missing { .. } => {
                "--model takes a directory in Hugging Face layout: config.json, \
                model.safetensors or pytorch_model.bin, vocab.txt or tokenizer.json"
                    .to_owned()
            }
            Self::Config { .. } => {
                "driftgauge runs BERT encoders; if this is one, use the config.json \
                that was published with its weights"
                    .to_owned()
            }
            Self::Manifest { .. } => "mend the manifest".to_owned(),
            Self::Weights { .. } => {
                "fetch the file again, or export the checkpoint again with transformers' \
                 `save_pretrained`"
                    .to_owned()
            }
            Self::Tokenizer { .. } => {
                "use the tokenizer files that were published with the checkpoint".to_owned()
            }
            Self::NotTheModel { id, manifest, .. } => format!(
                "fetch the files of `{id}` again; if this is another model on purpose, give its \
                 directory another name (manifest: `{}`)",
                manifest.display()
            ),
        }
    }
}

/// A model that is ready to be run: every file it was made of is hashed.
#[derive(Debug)]
pub struct Model {
    /// ID of the manifest, or the name of the directory.
    pub id: String,
    /// The directory, as given.
    pub directory: PathBuf,
    /// The manifest that the directory was held to, when it claims to be a known model.
    pub manifest: Option<Manifest>,
    /// The architecture.
    pub config: BertConfig,
    /// The files that were loaded.
    pub files: Vec<HashedFile>,
    /// The reference tokenizer.
    pub tokenizer: Tokenizer,
    /// The weights.
    pub weights: ModelWeights,
}

impl Model {
    /// Opens a directory in Hugging Face layout.
    ///
    /// # Errors
    /// [`ModelError`] for anything that is missing, damaged, contradictory, or not what the
    /// directory's name claims.
    pub fn open(directory: &Path, manifests: &[Manifest]) -> Result<Self, ModelError> {
        let io_error = |source| ModelError::Io {
            path: directory.to_owned(),
            source,
        };
        if !std::fs::metadata(directory).map_err(io_error)?.is_dir() {
            return Err(io_error(std::io::Error::other("not a directory")));
        }
        let find = |name: &str| {
            let path = directory.join(name);
            // A link to a file that is gone must not look like a file that was never there.
            path.symlink_metadata().is_ok().then_some(path)
        };
        let optional = |name: &str| find(name).map(|path| HashedFile::open(&path)).transpose();
        let missing = |wanted| ModelError::Missing {
            directory: directory.to_owned(),
            wanted,
        };
        let config_file = optional("config.json")?.ok_or_else(|| missing("config.json"))?;
        let config = config::parse(&config_file.path, &config_file.map)?;
        let vocabulary = optional("vocab.txt")?;
        let tokenizer_config = optional("tokenizer_config.json")?;
        let tokenizer_json = optional("tokenizer.json")?;
        if vocabulary.is_none() && tokenizer_json.is_none() {
            return Err(missing("vocab.txt and no tokenizer.json"));
        }
        // The weights are checked on one core while they are hashed on another.
        let (weights_file, weights) = match find("model.safetensors") {
            Some(path) => HashedFile::open_beside(&path, |file| {
                ModelWeights::from_safetensors(file, &config)
            })?,
            None => {
                let path = find("pytorch_model.bin")
                    .ok_or_else(|| missing("model.safetensors and no pytorch_model.bin"))?;
                HashedFile::open_beside(&path, |file| ModelWeights::from_torch(file, &config))?
            }
        };

        let loaded: Vec<&HashedFile> = [
            Some(&config_file),
            vocabulary.as_ref(),
            tokenizer_config.as_ref(),
            tokenizer_json.as_ref(),
        ]
        .into_iter()
        .flatten()
        .chain([&weights_file])
        .collect();
        let manifest = manifest::claimed(manifests, directory);
        if let Some(manifest) = manifest {
            manifest::verify(manifest, &loaded)?;
        }
        let weights = weights?;
        let bytes = |file: &'_ Option<HashedFile>| {
            file.as_ref()
                .map(|file| (file.path.clone(), file.map.clone()))
        };
        let (vocabulary, tokenizer_config, tokenizer_json) = (
            bytes(&vocabulary),
            bytes(&tokenizer_config),
            bytes(&tokenizer_json),
        );
        let tokenizer = Tokenizer::new(
            tokenizer::TokenizerFiles {
                vocabulary: vocabulary
                    .as_ref()
                    .map(|(path, map)| (path.as_path(), &map[..])),
                config: tokenizer_config
                    .as_ref()
                    .map(|(path, map)| (path.as_path(), &map[..])),
                tokenizer: tokenizer_json
                    .as_ref()
                    .map(|(path, map)| (path.as_path(), &map[..])),
            },
            &config,
        )?;
        if let Some(known) = manifest {
            let differences = tokenizer.differences(&known.tokenizer);
            if !differences.is_empty() {
                return Err(ModelError::NotTheModel {
                    directory: directory.to_owned(),
                    id: known.model.id.clone(),
                    manifest: known.path.clone(),
                    differences,
                });
            }
        }
        let name = directory
            .canonicalize()
            .unwrap_or_else(|_| directory.to_owned());
        let name = name
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        Ok(Self {
            id: manifest.map_or_else(|| name.unwrap_or_default(), |known| known.model.id.clone()),
            directory: directory.to_owned(),
            manifest: manifest.cloned(),
            files: loaded.into_iter().cloned().collect(),
            config,
            tokenizer,
            weights,
        })
    }

    /// What a worker is told to load this model in `dtype` on `device`.
    pub fn load_request(&self, device: &str, dtype: Dtype, threads: usize) -> LoadRequest {
        LoadRequest {
            config: self.config.clone(),
            weights: self.weights.file().clone(),
            mlm_head: self.weights.has_head(),
            device: device.to_owned(),
            dtype,
            threads,
            options: Default::default(),
            fault: None,
        }
    }
}
