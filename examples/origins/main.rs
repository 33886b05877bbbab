//! The record this project comes from, rebuilt: its toys, its systems, its findings, as tables. `docs/origins.md` has them.
//!
//!     cargo run --release --example origins_record -- systems --toy random:2x256
//!     cargo run --release --example origins_record -- growth linearity transport decode sizes

mod agreement;
mod calibration;
mod decode_cost;
mod growth;
mod jacobian;
mod linearity;
mod rules;
mod sizes;
mod source;
mod systems;
#[cfg(test)]
mod tests;
mod toy;
mod training;

#[path = "../train_demo/corpus.rs"]
#[allow(dead_code, reason = "the tokenizer is not trained here")]
mod corpus;
#[path = "../train_demo/grammar.rs"]
#[allow(dead_code, reason = "nothing is parsed here")]
mod grammar;

use agreement::Reference;
use clap::{Parser, ValueEnum};
use linearity::Coordinate;
use source::VOCABULARY;
use std::{error::Error, str::FromStr, time::Instant};
use systems::{Group, systems};
use toy::Toy;

type Fallible<T> = Result<T, Box<dyn Error>>;

/// Rebuilds the original record's experiments.
#[derive(Parser)]
struct Args {
    /// What to run [default: all]
    sections: Vec<Section>,
    /// Toys of `systems`: random:LAYERSxWIDTH, trained:LAYERSxWIDTH, or demo
    #[arg(long, default_values = ["random:2x256", "demo"])]
    toy: Vec<Source>,
    /// Only systems whose name holds one of these
    #[arg(long)]
    only: Vec<String>,
    /// Greedy steps after each prompt, in windows of 100
    #[arg(long, default_value_t = 500)]
    steps: usize,
    /// Prompts
    #[arg(long, default_value_t = 8)]
    prompts: usize,
    /// Steps of training for trained toys
    #[arg(long, default_value_t = 200)]
    training_steps: usize,
    /// Decides weights and prompts
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    Systems,
    Growth,
    Linearity,
    Transport,
    Activations,
    Decode,
    Sizes,
}

/// Where a toy's weights come from.
#[derive(Clone, Copy)]
enum Source {
    Random { layers: usize, width: usize },
    Trained { layers: usize, width: usize },
    Demo,
}

impl FromStr for Source {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let shape = |shape: &str| {
            let (layers, width) = shape.split_once('x')?;
            Some((layers.parse().ok()?, width.parse().ok().filter(|width: &usize| width.is_multiple_of(16))?))
        };
        let found = match name.split_once(':') {
            None if name == "demo" => Some(Self::Demo),
            Some(("random", rest)) => shape(rest).map(|(layers, width)| Self::Random { layers, width }),
            Some(("trained", rest)) => shape(rest).map(|(layers, width)| Self::Trained { layers, width }),
            _ => None,
        };
        found.ok_or_else(|| {
            "expected random:LAYERSxWIDTH, trained:LAYERSxWIDTH or demo, the width a multiple of 16".into()
        })
    }
}

impl Source {
    /// The toy, and what the tables call it.
    fn make(self, args: &Args) -> Fallible<(Toy, String)> {
        Ok(match self {
            Self::Random { layers, width } => {
                (source::random(layers, width, VOCABULARY, args.seed), format!("random, {layers} layers, {width} wide"))
            }
            Self::Trained { layers, width } => {
                let config = source::config(layers, width, VOCABULARY);
                let (toy, loss) = training::train(&config, args.training_steps, args.seed)?;
                (
                    toy,
                    format!(
                        "trained for {} steps to {loss:.2} nats, {layers} layers, {width} wide",
                        args.training_steps
                    ),
                )
            }
            Self::Demo => (source::demo()?, "demo, trained, 4 layers, 128 wide".to_owned()),
        })
    }

    /// Prompts that suit the toy.
    fn prompts(self, n: usize, tokens: usize, seed: u64) -> Fallible<Vec<Vec<u32>>> {
        match self {
            Self::Random { .. } => Ok(source::random_prompts(n, tokens, VOCABULARY, seed)),
            _ => source::story_prompts(n, tokens, seed),
        }
    }
}

fn main() -> Fallible<()> {
    let args = Args::parse();
    let runs = |section| args.sections.is_empty() || args.sections.contains(&section);
    if runs(Section::Sizes) {
        sizes::print();
    }
    if runs(Section::Linearity) {
        print_linearity();
    }
    if runs(Section::Transport) {
        print_transport();
    }
    if runs(Section::Decode) {
        let cost = decode_cost::measure();
        println!(
            "## Decoding a weight of the log codec, nanoseconds, one thread\n\n| table | exp2 | `q8` |\n|---|---|---|"
        );
        println!("| {:.2} | {:.2} | {:.2} |\n", cost.table, cost.formula, cost.q8);
    }
    if runs(Section::Activations) {
        print_activation_cost();
    }
    if runs(Section::Growth) {
        print_growth(&args)?;
    }
    if runs(Section::Systems) {
        args.toy.iter().try_for_each(|source| print_systems(*source, &args))?;
    }
    Ok(())
}

fn print_linearity() {
    println!("## `Q(a x + b y)` against `a Q(x) + b Q(y)`, Gaussian vectors of 4096\n");
    println!("| | a = 1, b = 1 | a = 0.7, b = -0.4 |\n|---|---|---|");
    let (x, y) = (source::gaussian(4096, 1), source::gaussian(4096, 2));
    for (coordinate, name) in Coordinate::ALL {
        let [a, b] = [[1.0, 1.0], [0.7, -0.4]].map(|factors| percent(linearity::error(coordinate, factors, &x, &y)));
        println!("| {name} | {a} | {b} |");
    }
    println!();
}

fn print_transport() {
    let shares = [0.0, 0.01, 0.1, 0.3, 1.0];
    println!("## Weight transport, a random layer of 256 x 256\n\n| input off by | error of the output |\n|---|---|");
    for (share, error) in shares.iter().zip(jacobian::table(256, &shares)) {
        println!("| {} | {} |", percent(f64::from(*share)), percent(error));
    }
    println!();
}

/// Time to encode and decode one token's residual stream, beside the layer it lies between.
fn print_activation_cost() {
    println!("## Encoding a token's activations, 512 wide, microseconds, one thread\n");
    println!("| one layer | `log` | `log8` | `q8` |\n|---|---|---|---|");
    let toy = source::random(4, 512, 64, 1);
    let x = source::gaussian(512, 2);
    let median = |work: &mut dyn FnMut()| {
        let mut seconds: Vec<f64> = (0..51)
            .map(|_| {
                let start = Instant::now();
                work();
                start.elapsed().as_secs_f64()
            })
            .collect();
        seconds.sort_by(f64::total_cmp);
        1e6 * seconds[25]
    };
    let whole = median(&mut || {
        std::hint::black_box(toy.step(&rules::Rules::default(), &mut [toy::Text::default()], &[1]));
    });
    let log = median(&mut || drop(std::hint::black_box(rules::at_rest_origin("log", &x))));
    let [log8, q8] = [qins_codec::Format::Log8, qins_codec::Format::Q8]
        .map(|format| median(&mut || drop(std::hint::black_box(rules::at_rest(format, &x, 512)))));
    println!("| {:.0} | {log:.0} | {log8:.0} | {q8:.0} |\n", whole / 4.0);
}

fn print_growth(args: &Args) -> Fallible<()> {
    println!("## Relative error of the residual stream after each layer, 32 tokens\n");
    let layers = 10;
    println!("| system | {} |", (1..=layers).map(|layer| layer.to_string()).collect::<Vec<_>>().join(" | "));
    println!("|---|{}", "---|".repeat(layers));
    let toy = source::random(layers, 256, VOCABULARY, args.seed);
    let ids = source::random_prompts(1, 32, VOCABULARY, 7).remove(0);
    let calibration = source::random_prompts(2, 64, VOCABULARY, 8);
    for group in [Group::AtRest, Group::CodeDomain, Group::Activations] {
        for system in systems(group, &toy, &calibration) {
            let errors: Vec<String> = growth::growth(&toy, &system, &ids)[1..].iter().map(|e| percent(*e)).collect();
            println!("| {} | {} |", system.name, errors.join(" | "));
        }
    }
    println!();
    Ok(())
}

fn print_systems(source: Source, args: &Args) -> Fallible<()> {
    let (toy, name) = source.make(args)?;
    let reference = Reference::write(&toy, source.prompts(args.prompts, 8, args.seed + 10)?, args.steps);
    let calibration = Reference::write(&toy, source.prompts(2, 8, args.seed + 11)?, 56).whole_texts();
    println!("## {name}\n");
    println!(
        "{} prompts, {} steps; of the last {} tokens {:.1} differ; the best logit leads by {:.3} (median)\n",
        args.prompts,
        args.steps,
        agreement::WINDOW,
        reference.distinct_at_the_end(),
        reference.margin(),
    );
    let windows: Vec<String> =
        (1..=args.steps / agreement::WINDOW).map(|w| format!("to {}", w * agreement::WINDOW)).collect();
    println!("| system | {} | identical prefix | teacher-forced | first step | top-10 | KL |", windows.join(" | "));
    println!("|---|{}", "---|".repeat(windows.len() + 5));
    for group in [Group::AtRest, Group::CodeDomain, Group::Activations] {
        let wanted = |system: &agreement::System| {
            args.only.is_empty() || args.only.iter().any(|part| system.name.contains(part))
        };
        let systems: Vec<_> = systems(group, &toy, &calibration).into_iter().filter(wanted).collect();
        // Two at a time: the machine of the record's figures has two cores.
        for pair in systems.chunks(2) {
            let found: Vec<_> = std::thread::scope(|scope| {
                let running: Vec<_> = pair.iter().map(|system| scope.spawn(|| reference.compare(system))).collect();
                running.into_iter().map(|one| one.join().expect("no system panics")).collect()
            });
            for (system, found) in pair.iter().zip(found) {
                let windows: Vec<String> = found.windows.iter().map(|share| percent(*share)).collect();
                println!(
                    "| {} | {} | {:.1} | {} | {} | {} | {:.1e} |",
                    system.name,
                    windows.join(" | "),
                    found.identical_prefix,
                    percent(found.same_top),
                    percent(found.first_step_same_top),
                    percent(found.top_10_overlap),
                    found.kl,
                );
            }
        }
    }
    println!();
    Ok(())
}

fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    if percent < 1.0 && percent > 0.0 { format!("{percent:.2} %") } else { format!("{percent:.1} %") }
}
