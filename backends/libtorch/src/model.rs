//! BERT (Bidirectional Encoder Representations from Transformers) in libtorch operations.
//!
//! - Paper: [arXiv:1810.04805](https://arxiv.org/abs/1810.04805)
//! - Upstream: [`modeling_bert.py`][hf] of transformers 4.28.1, with eager attention
//!
//! Dropout and what belongs to decoders is left out. Every result on the way is a step of its stage, which
//! a fault may change and a probe may keep.
//!
//! [hf]: https://github.com/huggingface/transformers/blob/v4.28.1/src/transformers/models/bert/modeling_bert.py

use std::collections::BTreeMap;

use driftgauge_protocol::fault::Fault;
use driftgauge_protocol::{BertConfig, Failure, Stage, Step, observation};
use tch::{Kind, TchError, Tensor};

use crate::blocks::{Embeddings, Head, Layer};
use crate::mask::Mask;
use crate::steps::Steps;
use crate::tensors::{Input, Loader};

/// An encoder, with a masked-language-model head where the checkpoint has one.
pub struct Bert {
    embeddings: Embeddings,
    layers: Vec<Layer>,
    head: Option<Head>,
    fault: Option<Fault>,
}

impl Bert {
    /// Reads all weights. The loader has changed those that the fault changes; the steps are changed here.
    ///
    /// # Errors
    /// For weights that are missing or of a wrong shape.
    pub fn load(
        loader: &mut Loader,
        config: &BertConfig,
        mlm_head: bool,
        fault: Option<Fault>,
    ) -> Result<Self, Failure> {
        let embeddings = Embeddings::load(loader, config)?;
        let layers = (0..config.num_hidden_layers)
            .map(|layer| Layer::load(loader, config, &format!("bert.encoder.layer.{layer}")))
            .collect::<Result<_, _>>()?;
        let head = mlm_head.then(|| Head::load(loader, config)).transpose()?;
        Ok(Self {
            embeddings,
            layers,
            head,
            fault,
        })
    }

    /// Names of everything that [`Bert::forward`] can observe.
    pub fn observations(&self) -> Vec<String> {
        let mut names = vec![observation::EMBEDDINGS.to_owned()];
        names.extend((1..=self.layers.len()).map(observation::hidden));
        names.extend(self.head.iter().map(|_| observation::LOGITS.to_owned()));
        names
    }

    /// One forward pass, and the wanted observations. The head runs only when it is wanted, but
    /// then on every position, as users run it.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn forward(
        &self,
        input: &Input,
        wanted: &[String],
    ) -> Result<BTreeMap<String, Tensor>, TchError> {
        let mut observed = BTreeMap::new();
        let mut observe = |name: String, tensor: &Tensor| {
            if wanted.contains(&name) {
                observed.insert(name, tensor.shallow_clone());
            }
        };
        let fault = self.fault.as_ref();
        let mut steps = Steps::new(Stage::Embeddings, fault);
        let mut hidden = self.embeddings.forward(input, &mut steps)?;
        observe(observation::EMBEDDINGS.to_owned(), &hidden);
        let kind = hidden.f_kind()?;
        let mask = Mask::new(input, kind)?;
        for (number, layer) in (1..).zip(&self.layers) {
            let own_mask = self.changed_mask(number, input, kind)?;
            let mask = own_mask.as_ref().unwrap_or(&mask);
            let mut steps = Steps::new(Stage::Layer(number), fault);
            hidden = layer.forward(&hidden, mask, &mut steps)?;
            observe(observation::hidden(number), &hidden);
        }
        let logits_wanted = wanted.iter().any(|name| name == observation::LOGITS);
        if let Some(head) = self.head.as_ref().filter(|_| logits_wanted) {
            let logits = head.forward(&hidden, &mut Steps::new(Stage::Head, fault))?;
            observe(observation::LOGITS.to_owned(), &input.wanted_rows(&logits)?);
        }
        Ok(observed)
    }

    /// The result of each step of one stage, from the hidden state before it; `None` where the model has no such
    /// stage.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn probe(
        &self,
        stage: Stage,
        input: &Input,
        hidden: Option<&Tensor>,
    ) -> Result<Option<BTreeMap<Step, Tensor>>, TchError> {
        let mut steps = Steps::keeping(stage, self.fault.as_ref());
        let result = match (stage, hidden) {
            (Stage::Embeddings, _) => Some(self.embeddings.forward(input, &mut steps)?),
            (Stage::Layer(number), Some(hidden)) if (1..=self.layers.len()).contains(&number) => {
                let kind = hidden.f_kind()?;
                let mask = match self.changed_mask(number, input, kind)? {
                    Some(mask) => mask,
                    None => Mask::new(input, kind)?,
                };
                Some(self.layers[number - 1].forward(hidden, &mask, &mut steps)?)
            }
            (Stage::Head, Some(hidden)) => {
                let head = self.head.as_ref();
                head.map(|head| head.forward(hidden, &mut steps))
                    .transpose()?
            }
            (Stage::Layer(_), _) | (Stage::Head, None) => None,
        };
        if result.is_none() {
            return Ok(None);
        }
        let mut kept = steps.into_kept();
        if stage == Stage::Head {
            for result in kept.values_mut() {
                *result = input.wanted_rows(result)?;
            }
        }
        Ok(Some(kept))
    }

    /// The mask of a layer where a fault puts another one in its place.
    fn changed_mask(
        &self,
        layer: usize,
        input: &Input,
        kind: Kind,
    ) -> Result<Option<Mask>, TchError> {
        let fault = self.fault.as_ref();
        fault
            .and_then(|fault| fault.mask(layer, input.batch))
            .map(|mask| Mask::changed(&mask, input, kind))
            .transpose()
    }
}
