//! Multiple choice: the model takes the choice that it thinks the most likely to follow.

use crate::{Estimate, EvalError, LanguageModel, PART, Sequence, logits::log_sum_exp, statistics::mean};
use phi35_model::{Tokenizer, TokenizerError};
use serde::{Deserialize, Serialize};

/// A question, a line of a JSONL file.
///
/// A blank is put between context and choice unless the one ends with white space or the other begins with it; white
/// space at the end of the context counts as the choices'.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Task {
    /// What comes before.
    pub context: String,
    /// What may follow, two or more.
    pub choices: Vec<String>,
    /// Which of them is right, counted from 0.
    pub answer: usize,
}

/// Reads a JSONL file, an object a line: `{"context": "...", "choices": ["...", "..."], "answer": 1}`. Other
/// fields and empty lines do not count.
pub fn read_tasks(jsonl: &str) -> Result<Vec<Task>, EvalError> {
    let lines = jsonl.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let tasks: Vec<Task> = lines
        .map(|(i, line)| {
            let fails = |reason: String| EvalError::Task { line: i + 1, reason };
            let task: Task = serde_json::from_str(line).map_err(|error| fails(error.to_string()))?;
            let (n, answer) = (task.choices.len(), task.answer);
            if n < 2 || task.choices.iter().any(|choice| choice.trim().is_empty()) {
                return Err(fails(format!(
                    "expected at least two choices that are not empty, found {:?}",
                    task.choices
                )));
            }
            if answer >= n {
                return Err(fails(format!("expected an answer from 0 to {}, found {answer}", n - 1)));
            }
            Ok(task)
        })
        .collect::<Result<_, _>>()?;
    if tasks.is_empty() { Err(EvalError::Nothing("task")) } else { Ok(tasks) }
}

/// How well a model answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answers {
    /// Questions.
    pub tasks: usize,
    /// Share of right answers, by the likelihood of the whole choice.
    pub accuracy: Estimate,
    /// By the likelihood a byte of the choice.
    pub accuracy_per_byte: Estimate,
    /// By the likelihood a token of the choice.
    pub accuracy_per_token: Estimate,
    /// What the model gives the right choice, all choices together being 1.
    pub answer_probability: Estimate,
    /// What chance would give: the mean of one in so many choices.
    pub chance: f64,
    /// Questions whose beginning was left out, because the context does not hold them.
    pub truncated: usize,
    /// The questions in their order.
    pub per_task: Vec<TaskResult>,
}

/// How one question was answered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskResult {
    /// The right choice.
    pub answer: usize,
    /// The likeliest.
    pub chosen: usize,
    /// The likeliest a byte.
    pub chosen_per_byte: usize,
    /// The likeliest a token.
    pub chosen_per_token: usize,
    /// Of each choice.
    pub log_likelihood_nats: Vec<f64>,
    /// Of each choice, the blank before it left out.
    pub bytes: Vec<usize>,
    /// Of each choice.
    pub tokens: Vec<usize>,
    /// Whether the beginning of the context was left out.
    pub truncated: bool,
}

/// Why a question cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// There is no question.
    #[error("expected at least one task, found none")]
    Empty,
    /// The text has no tokens.
    #[error("task {task}: {source}")]
    Tokenizer {
        /// Counted from 1.
        task: usize,
        /// What the tokenizer says.
        source: TokenizerError,
    },
    /// The model cannot run it.
    #[error("task {task}: {source}")]
    Run {
        /// Counted from 1.
        task: usize,
        /// What is wrong.
        source: EvalError,
    },
}

/// Lets the model answer: the context is run with the special tokens that the tokenizer adds, then each choice after
/// it. `on_task` is told of each question when it is answered.
pub fn answer(
    model: &dyn LanguageModel,
    tokenizer: &Tokenizer,
    tasks: &[Task],
    mut on_task: impl FnMut(&TaskResult),
) -> Result<Answers, AnswerError> {
    if tasks.is_empty() {
        return Err(AnswerError::Empty);
    }
    let mut per_task = Vec::new();
    for (i, task) in tasks.iter().enumerate() {
        let choices = encode(task, tokenizer).map_err(|source| AnswerError::Tokenizer { task: i + 1, source })?;
        let result = choose(model, task, choices).map_err(|source| AnswerError::Run { task: i + 1, source })?;
        on_task(&result);
        per_task.push(result);
    }
    let share = |chosen: &dyn Fn(&TaskResult) -> usize| {
        mean(per_task.iter().map(|task| f64::from(u8::from(chosen(task) == task.answer))))
    };
    let probability = |task: &TaskResult| {
        let all: Vec<f32> = task.log_likelihood_nats.iter().map(|&l| l as f32).collect();
        (f64::from(all[task.answer]) - log_sum_exp(&all)).exp()
    };
    Ok(Answers {
        tasks: tasks.len(),
        accuracy: share(&|task| task.chosen),
        accuracy_per_byte: share(&|task| task.chosen_per_byte),
        accuracy_per_token: share(&|task| task.chosen_per_token),
        answer_probability: mean(per_task.iter().map(probability)),
        chance: mean(tasks.iter().map(|task| 1.0 / task.choices.len() as f64)).value,
        truncated: per_task.iter().filter(|task| task.truncated).count(),
        per_task,
    })
}

/// The ids of context and choice, and how many of them belong to the context.
struct Encoded {
    ids: Vec<u32>,
    context: usize,
}

fn encode(task: &Task, tokenizer: &Tokenizer) -> Result<Vec<Encoded>, TokenizerError> {
    let context = task.context.trim_end();
    let space = &task.context[context.len()..];
    let before = tokenizer.encode(context)?;
    let encoded = |choice: &String| {
        let blank = if space.is_empty() && !choice.starts_with(char::is_whitespace) { " " } else { "" };
        let ids = tokenizer.encode(&format!("{context}{space}{blank}{choice}"))?;
        // Where the last token of the context is another before this choice, it is part of what the choice says.
        let context = before.iter().zip(&ids).take_while(|(a, b)| a == b).count().min(ids.len().saturating_sub(1));
        Ok(Encoded { ids, context })
    };
    task.choices.iter().map(encoded).collect()
}

fn choose(model: &dyn LanguageModel, task: &Task, choices: Vec<Encoded>) -> Result<TaskResult, EvalError> {
    // What all choices share is run once. One token of it is run again with each: its logits tell the choice's first.
    let shared = choices.iter().map(|choice| choice.context).min().unwrap_or_default();
    let longest = choices.iter().map(|choice| choice.ids.len()).max().unwrap_or_default();
    // The last token of a choice is not run.
    let left_out = longest.saturating_sub(model.context() + 1);
    if shared <= left_out {
        return Err(EvalError::NoContext { limit: model.context() });
    }
    choices.iter().try_for_each(|choice| model.check_ids(&choice.ids))?;
    let mut sequence = model.start(longest - left_out);
    if shared - left_out > 1 {
        sequence.skip(&choices[0].ids[left_out..shared - 1]);
    }
    let run = sequence.tokens();
    let mut log_likelihood_nats = Vec::new();
    for Encoded { ids, context } in &choices {
        sequence.truncate(run);
        log_likelihood_nats.push(log_likelihood(
            model,
            sequence.as_mut(),
            &ids[left_out + run..],
            context - left_out - run,
        )?);
    }
    let bytes: Vec<usize> = task.choices.iter().map(|choice| choice.trim_start().len()).collect();
    let tokens: Vec<usize> = choices.iter().map(|choice| choice.ids.len() - choice.context).collect();
    // The first of equals.
    let best = |score: &dyn Fn(usize) -> f64| {
        (0..choices.len()).reduce(|best, i| if score(i) > score(best) { i } else { best }).unwrap_or_default()
    };
    Ok(TaskResult {
        answer: task.answer,
        chosen: best(&|i| log_likelihood_nats[i]),
        chosen_per_byte: best(&|i| log_likelihood_nats[i] / bytes[i] as f64),
        chosen_per_token: best(&|i| log_likelihood_nats[i] / tokens[i] as f64),
        log_likelihood_nats,
        bytes,
        tokens,
        truncated: left_out > 0,
    })
}

/// The log-likelihood of `ids[from..]` after `ids[..from]` and what the sequence has run.
fn log_likelihood(
    model: &dyn LanguageModel,
    sequence: &mut dyn Sequence,
    ids: &[u32],
    from: usize,
) -> Result<f64, EvalError> {
    let mut sum = 0.0;
    for start in (0..ids.len() - 1).step_by(PART) {
        let part = &ids[start..(start + PART).min(ids.len() - 1)];
        let logits = sequence.logits(part);
        for (row, i) in logits.chunks_exact(model.vocabulary()).zip(start + 1..) {
            let of_token = f64::from(row[ids[i] as usize]) - log_sum_exp(row);
            if !of_token.is_finite() {
                return Err(EvalError::NotFinite { which: "model", position: i });
            }
            sum += if i >= from { of_token } else { 0.0 };
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_faults_told_by_line() {
        let good = r#"{"context": "a", "choices": ["b", "c"], "answer": 1}"#;
        let tasks = read_tasks(&format!("{good}\n\n{good}\r\n")).unwrap();
        assert_eq!(tasks.len(), 2);
        assert_eq!((tasks[0].context.as_str(), tasks[0].answer), ("a", 1));
        for (bad, reason) in [
            (r#"{"context": "a", "choices": ["b", "c"], "answer": 2}"#, "from 0 to 1"),
            (r#"{"context": "a", "choices": ["b"], "answer": 0}"#, "at least two choices"),
            (r#"{"context": "a", "choices": ["b", " "], "answer": 0}"#, "not empty"),
            (r#"{"context": "a", "choices": ["b", "c"]}"#, "answer"),
            ("nonsense", "expected"),
        ] {
            let error = read_tasks(&format!("{good}\n{bad}")).unwrap_err().to_string();
            assert!(error.starts_with("line 2: ") && error.contains(reason), "{error}");
        }
        assert!(matches!(read_tasks("\n"), Err(EvalError::Nothing("task"))));
    }
}
