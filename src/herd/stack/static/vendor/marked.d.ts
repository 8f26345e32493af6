// The names that the page uses of marked.
export class Lexer {
  constructor(options?: any);
  tokens: any[] & { links: Record<string, any> };
  lex(source: string): any[] & { links: Record<string, any> };
}
export class Marked {
  constructor(...options: any[]);
  defaults: any;
  parser(tokens: any[]): string;
}
