/*
 * What the Hub's page of a model with `library_name: taia-hub` shows and counts, as it goes into huggingface.js.
 *
 * To submit it: fork https://github.com/huggingface/huggingface.js; put the first part into
 * packages/tasks/src/model-libraries-snippets.ts and the second one into MODEL_LIBRARIES_UI_ELEMENTS of
 * packages/tasks/src/model-libraries.ts, each where the alphabet has it; replace OWNER by whoever publishes the
 * package; and open a pull request, once an index has the package, that links to a model on the Hub which has the name. Until it is merged, a page
 * shows no code of its own, and downloads count all the same: config.json is what the Hub counts by default.
 */

// --- model-libraries-snippets.ts
export const taia_hub = (model: ModelData): string[] => [
	`# pip install taia-hub
import taia_hub  # registers with the Auto classes
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("${model.id}")
tokenizer = AutoTokenizer.from_pretrained("${model.id}")
inputs = tokenizer("The capital of France is", return_tensors="pt")

model.inference_modules = "attention"  # TAIA; "ffn", "all" (the vanilla fine-tune) and "none" (the base) are others
answer = model.generate(**inputs, max_new_tokens=32)
print(tokenizer.decode(answer[0], skip_special_tokens=True))`,
];

// --- model-libraries.ts
	"taia-hub": {
		prettyLabel: "TAIA",
		repoName: "taia-hub",
		repoUrl: "https://github.com/OWNER/taia-hub",
		docsUrl: "https://github.com/OWNER/taia-hub#readme",
		snippets: snippets.taia_hub,
		filter: false,
		// Each load asks once for it; the files in adapter/ would count a load twice, and are read by other engines too.
		countDownloads: `path:"config.json"`,
	},
